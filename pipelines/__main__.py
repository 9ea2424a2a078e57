"""`python -m pipelines`: the same as `b4m pipeline`."""

import sys

from pipelines.cli import main

if __name__ == "__main__":
    sys.exit(main())
