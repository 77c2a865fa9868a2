"""``python -m gtpo_mini`` does what ``gtpo-mini`` does."""

import sys


def main(words: list[str] | None = None) -> int:
    """The command line; where the training packages are missing, one line that names the fix."""
    try:
        from .cli import main as door
    except ModuleNotFoundError as error:
        print(f"gtpo-mini needs {error.name}: pip install 'gtpo-mini[train]'", file=sys.stderr)
        return 2
    return door(words)


if __name__ == "__main__":
    sys.exit(main())
