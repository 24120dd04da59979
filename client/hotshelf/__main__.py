"""The `hotshelf` command: hands over to `hotshelf.cli`, or says what to install."""

from __future__ import annotations

import sys
from typing import NoReturn


def main() -> int:
    """Runs the command line; its exit code."""
    if sys.argv[1:2] == ["worker"] and sys.argv[2:] and (sys.argv[2] == "-m" or not sys.argv[2].startswith("-")):
        _work(sys.argv[2:])  # with the standard library alone, and without the 0.3 s that the other verbs take to load
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


def _work(words: list[str]) -> NoReturn:
    from hotshelf.prewarm import stub
    from hotshelf.prewarm.program import Program
    from hotshelf_shared.errors import HotshelfError

    try:
        program = Program.parse(words)
    except HotshelfError as error:
        print(f"hotshelf: {error.message}\n  {error.hint}", file=sys.stderr)
        sys.exit(error.exit_code)
    assert program is not None
    stub.run(program)


if __name__ == "__main__":
    sys.exit(main())
