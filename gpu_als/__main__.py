"""Run the command line as ``python -m gpu_als``."""

import sys

from gpu_als.cli import main

if __name__ == "__main__":
    sys.exit(main())
