"""The one image of all components."""

import os

IMAGE = os.environ.get("B4M_IMAGE") or "localhost/b4m-python:0.1.0"
