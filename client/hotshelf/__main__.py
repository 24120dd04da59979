"""The `hotshelf` command: hands over to `hotshelf.cli`, or says what to install."""

from __future__ import annotations

import sys


def main() -> int:
    """Runs the command line; its exit code."""
    try:
        import click  # noqa: F401
        import rich  # noqa: F401
    except ModuleNotFoundError:
        print("The hotshelf command needs more: pip install 'hotshelf[cli]'", file=sys.stderr)
        return 1
    from hotshelf.cli import run

    return run()


if __name__ == "__main__":
    sys.exit(main())
