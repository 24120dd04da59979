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


def serve_compile_cache() -> int:
    """The command `b10-compile-cache`: `hotshelf compile-cache serve` under b10-transfer's name."""
    sys.argv[1:1] = ["compile-cache", "serve"]
    return main()


if __name__ == "__main__":
    sys.exit(main())
