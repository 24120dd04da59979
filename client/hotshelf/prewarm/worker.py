"""The forked child on its way to being a worker: whatever a fresh Python would have, it has; then it runs its program."""

from __future__ import annotations

import builtins
import ctypes
import importlib
import io
import os
import pkgutil
import runpy
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.machinery import SourceFileLoader
from types import CodeType, ModuleType, TracebackType
from typing import Any

from hotshelf.prewarm import files, signals
from hotshelf.prewarm.program import Program, is_unbuffered, python
from hotshelf.prewarm.request import Request

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Birth:
    """What a child of `parent` is to become. `files` are the request's, under other numbers yet, and its folder."""

    request: Request
    files: Sequence[int]
    parent: int


def become(birth: Birth, left: Mapping[str, str]) -> Program:
    """Everything but running: files, signals, environment, what modules took note of when they were imported.

    `left` are the variables that imports have set: in a fresh process they would have, too.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != birth.parent:
        os._exit(1)  # it died before that took effect
    request = birth.request
    os.setpgid(0, 0)
    *opened, here = birth.files
    os.fchdir(here)
    os.close(here)
    files.place(opened, request.files)
    if os.isatty(0):
        _come_forward()
    os.umask(request.umask)
    os.environ.clear()
    os.environ.update({**left, **request.footing.environment})
    sys.executable = request.executable
    sys.orig_argv = python(*request.program.words)
    _open_streams()
    _forget()
    signals.as_fresh(ignore=request.ignored, block=request.blocked)
    return request.program


def _come_forward() -> None:
    """Where the terminal is the zygote's own, its keys mean the worker; anybody else's is not ours to take."""
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    try:
        os.tcsetpgrp(0, os.getpgrp())
    except OSError:
        return


def _open_streams() -> None:
    """As CPython's `create_stdio`. The zygote's own stay open: handlers made at import write to them, and to the same files."""
    encoding = {"stdin": sys.stdin, "stdout": sys.stdout, "stderr": sys.stderr}
    for number, (name, before) in enumerate(encoding.items()):
        write = number > 0
        buffering = 0 if write and is_unbuffered() else -1
        binary: Any = open(number, "wb" if write else "rb", buffering=buffering, closefd=False)  # noqa: SIM115
        getattr(binary, "raw", binary).name = f"<{name}>"
        stream = io.TextIOWrapper(
            binary,
            encoding=before.encoding,
            errors=before.errors,
            newline="\n",
            line_buffering=not is_unbuffered() and (binary.isatty() or number == 2),
            write_through=is_unbuffered(),
        )
        stream.mode = "w" if write else "r"  # type: ignore[misc]
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _forget() -> None:
    """What modules keep of the process that imported them. Python's `random` has its own hook."""
    importlib.invalidate_caches()
    time.tzset()
    numbers = sys.modules.get("numpy.random")
    if numbers is not None:
        numbers.seed()
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.default_generator.seed()
    tempfile = sys.modules.get("tempfile")
    if tempfile is not None:
        tempfile.tempdir = None  # type: ignore[attr-defined]
    processes = sys.modules.get("multiprocessing.process")
    if processes is not None:
        processes.ORIGINAL_DIR = os.path.abspath(os.getcwd())  # type: ignore[attr-defined]
        processes.current_process().authkey = os.urandom(32)


def first_path(program: Program) -> str | None:
    """The folder that Python puts before all others for this program; None when it was told not to."""
    if sys.flags.safe_path:
        return None
    if program.is_module:
        return os.getcwd()
    if _holds_a_program(program.name):
        return os.path.abspath(program.name)
    return os.path.dirname(os.path.realpath(program.name))


def run(program: Program) -> None:
    """Runs it as `__main__`. What it raises is for the interpreter, as ever; its traceback begins where a plain one does."""
    outer, main = sys.modules["__main__"], ModuleType("__main__")
    main.__dict__.update(__annotations__={}, __builtins__=builtins)
    sys.modules["__main__"] = main
    first = first_path(program)
    sys.path[:0] = [] if first is None else [first]
    sys.argv = ["-m" if program.is_module else program.name, *program.args]
    try:
        if program.is_module:
            if not hasattr(sys.modules.get(program.name), "__path__"):
                sys.modules.pop(program.name, None)
            runpy._run_module_as_main(program.name)  # type: ignore[attr-defined]
        elif _holds_a_program(program.name):
            runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined]
        else:
            exec(_prepare(program.name, main), main.__dict__)  # noqa: S102  running it is what this is for
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook = _from_the_program(sys.excepthook)
        raise
    del outer


def _holds_a_program(path: str) -> bool:
    """A folder or a zip file, with a `__main__.py` in it."""
    return pkgutil.get_importer(path) is not None


def _prepare(path: str, main: ModuleType) -> CodeType:
    whole = os.path.abspath(path)
    main.__dict__.update(__file__=whole, __cached__=None)
    main.__loader__ = SourceFileLoader("__main__", whole)
    try:
        with io.open_code(whole) as file:
            code: CodeType | None = pkgutil.read_code(file)
            if code is not None:
                return code
            file.seek(0)
            return compile(file.read(), whole, "exec", dont_inherit=True)
    except OSError as error:
        print(f"{sys.executable}: can't open file {whole!r}: [Errno {error.errno}] {error.strerror}", file=sys.stderr)
        raise SystemExit(2) from None


_Hook = Callable[[type[BaseException], BaseException, TracebackType | None], object]


def _from_the_program(hook: _Hook) -> _Hook:
    def shown(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        while trace is not None and trace.tb_frame.f_code is not run.__code__:
            trace = trace.tb_next
        while trace is not None and trace.tb_frame.f_code.co_filename == __file__:
            trace = trace.tb_next
        hook(kind, error.with_traceback(trace), trace)

    return shown
