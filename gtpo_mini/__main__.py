"""``gtpo-mini COMMAND`` and ``python -m gtpo_mini COMMAND``; the commands are in `cli`."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
