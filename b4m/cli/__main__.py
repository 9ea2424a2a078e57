"""`python -m b4m.cli`, where the script is not installed."""

import sys

from b4m.cli import main

sys.exit(main())
