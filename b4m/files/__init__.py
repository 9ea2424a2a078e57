"""Adapter files: read any tool's, write any tool's, strict about what they do not understand."""

from b4m.files.describe import describe
from b4m.files.read import read_adapter
from b4m.files.write import write_adapter

__all__ = ["describe", "read_adapter", "write_adapter"]
