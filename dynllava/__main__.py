"""``python -m dynllava``: the command line where nothing is installed, e.g. from a checkout."""

import sys

from dynllava.cli import main

sys.exit(main())
