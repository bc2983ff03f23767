"""`python -m batchinfer`."""

import sys

from batchinfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
