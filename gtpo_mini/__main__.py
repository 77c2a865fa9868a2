"""``python -m gtpo_mini`` does what ``gtpo-mini`` does."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
