"""`hotshelfd [--config FILE] [--store DIR] [--socket PATH]`."""

from __future__ import annotations

import os
import sys


def main() -> int:
    """The exit code: 0 after a clean stop, 78 for a configuration that cannot be used."""
    try:
        import click
        import pydantic  # noqa: F401
    except ImportError as missing:
        print(f"hotshelfd needs {missing.name}: pip install 'hotshelf[daemon]'", file=sys.stderr)
        return 1
    from hotshelf_daemon.command import hotshelfd

    try:
        code = hotshelfd.main(standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:
        code = 130
    sys.stdout.flush()
    sys.stderr.flush()
    # Threads may still sit in a read at an origin that has stopped answering: nothing they hold is needed any more.
    os._exit(code if isinstance(code, int) else 0)


if __name__ == "__main__":
    sys.exit(main())
