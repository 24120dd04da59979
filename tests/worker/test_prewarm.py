"""A worker from a zygote beside the same program started plainly: nobody can tell them apart, but by the time they take."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.waiting import wait_until

from .prewarmed import Prewarmed, descendants, is_alive, is_from_a_zygote, zygote

#: What a program can see of its process. Numbers of processes are left out, and what tells the two commands apart.
LOOK = """
import __main__, atexit, json, locale, multiprocessing, os, resource, signal, sys, threading, time, warnings
kept = {name: value for name, value in os.environ.items() if name not in ("_",)}
seen = {
    "argv": sys.argv, "path": sys.path, "executable": sys.executable, "flags": str(sys.flags),
    "main": sorted(name for name in vars(__main__) if name not in ("kept", "seen", "stream", "n")),
    "name": __name__, "file": __file__, "spec": getattr(__spec__, "name", None),
    "loader": type(__loader__).__name__, "package": __package__,
    "main module": sys.modules["__main__"] is __main__ and __main__.__dict__ is globals(),
    "cwd": os.getcwd(), "environ": kept, "umask": os.umask(0o22), "nice": os.nice(0),
    "streams": [
        [stream.name, stream.mode, stream.encoding, stream.errors, stream.line_buffering, stream.write_through,
         type(stream.buffer).__name__, stream.isatty(), stream.fileno(), stream.seekable(),
         getattr(sys, f"__{name}__") is stream]
        for name, stream in (("stdin", sys.stdin), ("stdout", sys.stdout), ("stderr", sys.stderr))
    ],
    "signals": {int(n): str(signal.getsignal(n)) for n in signal.valid_signals()},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
    "wakeup": signal.set_wakeup_fd(-1),
    "limits": [resource.getrlimit(n) for n in range(16)],
    "files": sorted(int(n) for n in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{n}")),
    "threads": threading.active_count(), "tz": time.strftime("%Z"), "filters": str(warnings.filters),
    "original": multiprocessing.process.ORIGINAL_DIR, "locale": locale.setlocale(locale.LC_ALL),
    "groups": os.getgroups(), "hook": sys.excepthook is sys.__excepthook__,
}
json.dump(seen, sys.stdout)
"""
ALIKE = {
    "returns": "print('done')",
    "exits": "import sys; print('x'); sys.exit(3)",
    "exits with words": "import sys; sys.exit('no good')",
    "fails": "def f():\n    1 / 0\n\ntry:\n    f()\nexcept ZeroDivisionError:\n    raise ValueError('again')\n",
    "is no Python": "print('x'\n",
    "is interrupted": "raise KeyboardInterrupt",
    "is killed": "import os; print('x', flush=True); os.kill(os.getpid(), 9)",
    "leaves at once": "import os; print('never seen'); os._exit(7)",
    "has threads and last words": (
        "import atexit, threading, time\natexit.register(print, 'last')\n"
        "threading.Thread(target=lambda: (time.sleep(0.1), print('thread'))).start()\nprint('main')"
    ),
    "has a hook of its own": "import sys\nsys.excepthook = lambda *a: print('hook', a[0], a[2].tb_lineno)\nraise OSError",
    "warns": "import warnings; warnings.warn('careful', stacklevel=1); warnings.warn('old', DeprecationWarning)",
    "logs": "import logging; logging.warning('w'); logging.basicConfig(); logging.error('e')",
    "has a broken stdout": "import os; os.close(1); print('x' * 10)",
    "is written in Latin-1": "# coding: latin-1\nprint(ascii('\u00e9'))",
}


@pytest.fixture(scope="module")
def warm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prewarmed]:
    with zygote(tmp_path_factory.mktemp("z")) as running:
        yield running
        assert running.child.process.poll() is None, running.child.log_text()


def seen(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def test_a_program_finds_the_process_that_it_would_have_plainly(warm: Prewarmed) -> None:
    script = warm.script(LOOK, "look.py")
    given: dict[str, Any] = {"env": {"COLOUR": "blue \udcff", "CUDA_VISIBLE_DEVICES": "1", "TZ": "Asia/Tokyo"}, "umask": 0o027}
    assert seen(warm.run(script, "a", "--help", "-m", "", **given)) == seen(
        warm.plainly(script, "a", "--help", "-m", "", **given)
    )


def test_it_really_is_a_fork_of_the_zygote(warm: Prewarmed) -> None:
    script = warm.script("import os; print(os.getpid()); input()", "forked.py")
    with warm.start(script) as stub:
        assert stub.stdin
        assert stub.stdout
        pid = int(stub.stdout.readline())
        assert pid != stub.pid
        assert is_from_a_zygote(pid)
        stub.stdin.write("\n")
        assert stub.communicate() == ("", "")
    assert stub.returncode == 0


@pytest.mark.parametrize("what", ALIKE)
def test_it_ends_and_speaks_as_it_would_plainly(warm: Prewarmed, what: str) -> None:
    script = warm.script(ALIKE[what].encode().decode(), "alike.py")
    if "Latin" in what:
        (warm.folder / script).write_bytes(ALIKE[what].encode("latin-1"))
    ours, plain = warm.run(script), warm.plainly(script)
    assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr)


def test_modules_folders_archives_and_what_is_not_there_run_as_they_would_plainly(warm: Prewarmed) -> None:
    warm.script(LOOK, "package/__init__.py")
    warm.script(LOOK, "package/inner.py")
    warm.script("import package.inner; 1 / 0", "package/__main__.py")
    warm.script(LOOK, "folder/__main__.py")
    with zipfile.ZipFile(warm.folder / "packed.zip", "w") as packed:
        packed.writestr("__main__.py", "import sys; print(sys.argv, sys.path[0], __file__)")
    (warm.folder / "empty").mkdir()
    for program in (
        ("-m", "package.inner", "-m", "x"),
        ("-m", "package"),
        ("-m", "no.such"),
        ("-m", "json.tool", "--help"),
        ("folder", "a"),
        ("packed.zip", "a"),
        ("empty",),
        ("nothing.py",),
    ):
        ours, plain = warm.run(*program), warm.plainly(*program)
        assert (ours.returncode, ours.stdout, ours.stderr) == (plain.returncode, plain.stdout, plain.stderr), program


def test_no_two_workers_draw_the_same_random_numbers(warm: Prewarmed) -> None:
    script = warm.script("import random, secrets, uuid; print(random.random(), uuid.uuid4(), secrets.token_hex())", "r.py")
    first, second = (warm.run(script).stdout.split() for _ in range(2))
    assert not set(first) & set(second)


def test_processes_of_multiprocessing_work_in_it(warm: Prewarmed) -> None:
    text = """
import multiprocessing

def double(number):
    return 2 * number

if __name__ == "__main__":
    for method in ("spawn", "fork"):
        with multiprocessing.get_context(method).Pool(2) as pool:
            print(method, pool.map(double, [1, 2, 3]))
"""
    done = warm.run(warm.script(text, "pool.py"))
    assert (done.stdout, done.stderr) == ("spawn [2, 4, 6]\nfork [2, 4, 6]\n", "")


HANDLES = """
import os, signal, sys
def handle(number, frame):
    os.write(1, f"got {number}\\n".encode())
    if number == signal.SIGTERM:
        sys.exit(5)
for number in (signal.SIGUSR1, signal.SIGTERM, signal.SIGRTMIN):
    signal.signal(number, handle)
os.write(1, f"{os.getpid()}\\n".encode())
while True:
    signal.pause()
"""


def test_signals_to_the_stub_are_the_worker_s(warm: Prewarmed) -> None:
    with warm.start(warm.script(HANDLES, "handles.py")) as stub:
        assert stub.stdout
        stub.stdout.readline()
        for number in (signal.SIGUSR1, signal.SIGRTMIN, signal.SIGTERM):
            stub.send_signal(number)
            assert stub.stdout.readline() == f"got {int(number)}\n"
    assert stub.returncode == 5


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT])
def test_a_signal_that_nobody_handles_ends_both_alike(warm: Prewarmed, number: signal.Signals) -> None:
    with warm.start(warm.script("import time; print(flush=True); time.sleep(600)", "sleeps.py")) as stub:
        assert stub.stdout
        assert stub.stderr
        stub.stdout.readline()
        stub.send_signal(number)
        complaint = stub.stderr.read()
    assert stub.returncode == -number
    assert ("KeyboardInterrupt" in complaint) == (number == signal.SIGINT)


def test_who_signals_all_processes_does_not_take_a_worker_from_its_work(warm: Prewarmed) -> None:
    """As a service manager does: the process between worker and zygote would take the worker along."""
    text = "import os\nprint(os.getppid(), flush=True)\ninput()\nprint('on')"
    with warm.start(warm.script(text, "served.py")) as stub:
        assert stub.stdout
        warden = int(stub.stdout.readline())
        assert warden != stub.pid
        for number in (signal.SIGTERM, signal.SIGQUIT, signal.SIGUSR1):
            os.kill(warden, number)
        assert stub.communicate("\n")[0] == "on\n"
    assert stub.returncode == 0


def test_what_is_ignored_when_it_starts_stays_ignored(warm: Prewarmed) -> None:
    text = "import os, signal, sys\nprint(signal.getsignal(1).name, signal.getsignal(2).name, flush=True)\ninput()\nprint('on')"
    quoted = f"trap '' HUP INT; exec {sys.executable} -m hotshelf worker {warm.script(text, 'deaf.py')}"
    with subprocess.Popen(
        ["sh", "-c", quoted], cwd=warm.folder, env=warm.environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as stub:
        assert stub.stdout
        assert stub.stdout.readline() == "SIG_IGN SIG_IGN\n"
        stub.send_signal(signal.SIGHUP)
        stub.send_signal(signal.SIGINT)
        assert stub.communicate("\n")[0] == "on\n"
    assert stub.returncode == 0


def test_ctrl_z_stops_both_and_fg_continues_them(warm: Prewarmed) -> None:
    def state(pid: int) -> str:
        return pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]

    with warm.start(warm.script(HANDLES, "stops.py")) as stub:
        assert stub.stdout
        worker = int(stub.stdout.readline())
        stub.send_signal(signal.SIGTSTP)
        wait_until(lambda: (state(stub.pid), state(worker)) == ("T", "T"), what="both to stop")
        stub.send_signal(signal.SIGCONT)
        stub.send_signal(signal.SIGTERM)
        assert stub.stdout.readline() == f"got {int(signal.SIGTERM)}\n"
    assert stub.returncode == 5


def test_a_killed_stub_takes_its_worker_with_it_and_nothing_is_left(warm: Prewarmed) -> None:
    with warm.start(warm.script(HANDLES, "left.py")) as stub:
        assert stub.stdout
        worker = int(stub.stdout.readline())
        stub.kill()
    wait_until(lambda: not is_alive(worker), what="the worker's end")
    wait_until(lambda: not descendants(warm.child.pid), what="the warden's end")


def test_a_killed_warden_takes_the_worker_with_it_and_the_stub_ends_as_killed(warm: Prewarmed) -> None:
    with warm.start(warm.script(HANDLES, "bereft.py")) as stub:
        assert stub.stdout
        worker = int(stub.stdout.readline())
        os.kill(int(pathlib.Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1]), signal.SIGKILL)
    assert stub.returncode == -signal.SIGKILL
    wait_until(lambda: not is_alive(worker), what="the worker's end")


def test_its_files_are_the_stub_s_and_end_with_the_worker_s(warm: Prewarmed) -> None:
    """Also those beyond stderr; and whoever reads its stdout is done when the worker closes it, not when it ends."""
    text = """
import os, sys
with open(int(sys.argv[1]), "w") as more:
    more.write(sys.stdin.readline())
os.write(1, b"read\\n")
sys.stdout.close(); os.close(1)
sys.stderr.write("still here\\n")
sys.stdin.readline()
"""
    reading, writing = os.pipe()
    with warm.start(warm.script(text, "files.py"), str(writing), pass_fds=[writing]) as stub:
        os.close(writing)
        assert stub.stdin
        assert stub.stdout
        stub.stdin.write("for the pipe\n")
        stub.stdin.flush()
        with open(reading) as pipe:
            assert pipe.read() == "for the pipe\n"
        assert stub.stdout.read() == "read\n"
        assert stub.poll() is None
        stub.stdin.write("\n")
        stub.stdin.flush()
        assert stub.stderr
        assert stub.stderr.read() == "still here\n"
    assert stub.returncode == 0


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"HF_HOME": "/elsewhere"}, "the variable HF_HOME differs"),
        ({"OMP_NUM_THREADS": "1"}, "the variable OMP_NUM_THREADS differs"),
        ({"PYTHONWARNINGS": "error"}, "the interpreter's options differ"),
    ],
)
def test_a_worker_that_would_not_be_the_same_is_started_plainly_and_says_why(
    warm: Prewarmed, variables: dict[str, str], why: str
) -> None:
    script = warm.script("import os, sys; print(os.getpid() == int(sys.argv[1]) or os.environ)", "unlike.py")
    done = warm.run(script, "0", env=variables)
    assert done.stderr == f"hotshelf worker: started without the zygote: {why}\n"
    assert done.returncode == 0


def test_a_module_beside_the_script_is_found_before_the_zygote_s(warm: Prewarmed) -> None:
    warm.script("print('mine')", "shadow/socket.py")
    done = warm.run(warm.script("import socket", "shadow/script.py"))
    assert done.stdout == "mine\n"
    assert "has a module socket of its own" in done.stderr


@pytest.mark.parametrize("how", ["closed", "limited", "niced"])
def test_a_process_on_other_footing_is_no_fork(warm: Prewarmed, how: str) -> None:
    script = warm.script("import os; print(os.getpid(), os.getppid())", "footing.py")
    before = {"closed": "exec 0<&-", "limited": "ulimit -c 0; ulimit -n 512", "niced": ""}[how]
    nice = "nice -n 1 " if how == "niced" else ""
    with subprocess.Popen(
        ["sh", "-c", f"{before}\nexec {nice}{sys.executable} -m hotshelf worker {script}"],
        cwd=warm.folder, env=warm.environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as stub:  # fmt: skip
        said, why = stub.communicate()
    assert int(said.split()[0]) == stub.pid
    assert "started without the zygote" in why


def test_fifty_at_once_each_end_with_their_own_code(warm: Prewarmed) -> None:
    script = warm.script("import sys; print(sys.argv[1]); sys.exit(int(sys.argv[1]))", "many.py")
    with ThreadPoolExecutor(50) as pool:
        done = list(pool.map(lambda number: warm.run(script, str(number)), range(50)))
    assert [(one.returncode, one.stdout) for one in done] == [(number, f"{number}\n") for number in range(50)]
    wait_until(lambda: not descendants(warm.child.pid), what="nothing to be left")


MALFORMED = [
    b"",
    b"GET / HTTP/1.1\r\n\r\n",
    b"hsw1\xff\xff\xff\xff",
    b"hsw1\0\0\0\x02[]",
    b"hsw1\0\0\0\x02{}",
    b"hsw1\0\0\0\x09{nonsense",
]


@pytest.mark.parametrize("data", MALFORMED)
def test_what_is_no_request_is_refused_and_others_are_served(warm: Prewarmed, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(warm.socket))
        channel.sendall(data)
        channel.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert channel.recv(100) == b""
    assert warm.run(warm.script("print('served')", "served.py")).stdout == "served\n"


def test_a_stub_that_says_nothing_holds_up_nobody(warm: Prewarmed) -> None:
    with socket.socket(socket.AF_UNIX) as channel:
        channel.connect(str(warm.socket))
        assert warm.run(warm.script("print('served')", "served.py")).stdout == "served\n"


CARELESS = """
import os, socket, sys
from hotshelf.prewarm import request as words
from hotshelf.prewarm.footing import Footing
from hotshelf.prewarm.program import Program
with socket.socket(socket.AF_UNIX) as channel:
    channel.connect(os.environ["HOTSHELF_ZYGOTE"])
    program = Program(sys.argv[1], (), is_module=False)
    words.send(channel, words.Request(program, Footing.here(), sys.executable, os.getcwd(), 0o22, (0, 1, 2)).to_json())
    assert words.receive(channel) == {"unfit": None}
    words.send(channel, {"go": True}, (0, 1))
    try:
        print(words.receive(channel))
    except (EOFError, OSError):
        print("refused")
"""


def test_a_request_without_its_files_starts_nothing(warm: Prewarmed) -> None:
    victim = warm.script("open('started', 'w')", "victim.py")
    assert warm.plainly(warm.script(CARELESS, "careless.py"), victim).stdout == "refused\n"
    assert not (warm.folder / "started").exists()


@pytest.mark.root
def test_another_user_is_refused() -> None:
    with tempfile.TemporaryDirectory(prefix="hs-") as folder, zygote(pathlib.Path(folder)) as own:
        for path in (own.socket, *own.socket.parents):
            if path.is_relative_to(folder):
                path.chmod(0o777)  # the folder would have kept them out already
        become = "import os, socket; os.setgroups([]); os.setgid(65534); os.setuid(65534); s = socket.socket(socket.AF_UNIX)"
        code = f"{become}; s.connect({str(own.socket)!r}); print(s.recv(10))"
        assert own.plainly("-c", code).stdout == "b''\n"


def test_without_a_zygote_the_program_runs_all_the_same(warm: Prewarmed) -> None:
    script = warm.script("import os, sys; print(os.getpid()); sys.exit(3)", "alone.py")
    with warm.start(script, env={**warm.environment, "HOTSHELF_ZYGOTE": "/nonexistent/z"}) as stub:
        said = stub.communicate()
    assert (said, stub.returncode) == ((f"{stub.pid}\n", ""), 3)


def test_a_zygote_that_hangs_is_given_up_and_starts_nothing_later(tmp_path: pathlib.Path) -> None:
    with zygote(tmp_path) as own:
        own.child.process.send_signal(signal.SIGSTOP)
        script = own.script("print('ran')", "once.py")
        hurried = "import sys, hotshelf.prewarm.stub as s, hotshelf.prewarm.program as p; s._ANSWER_S = 1.0; "
        assert own.plainly("-c", f"{hurried}s.run(p.Program.parse(sys.argv[1:]))", script).stdout == "ran\n"
        own.child.process.send_signal(signal.SIGCONT)
        assert own.run(script).stdout == "ran\n"
        wait_until(lambda: not descendants(own.child.pid), what="nothing to be left")


def test_workers_outlive_their_zygote_and_new_ones_start_plainly(tmp_path: pathlib.Path) -> None:
    with zygote(tmp_path) as own:
        with own.start(own.script(HANDLES, "outlives.py")) as stub:
            assert stub.stdout
            stub.stdout.readline()
            own.child.kill()
            stub.send_signal(signal.SIGTERM)
            assert stub.stdout.readline() == f"got {int(signal.SIGTERM)}\n"
        assert stub.returncode == 5
        assert own.run(own.script("print('plain')", "after.py")).stdout == "plain\n"


def test_a_zygote_ends_in_order_and_one_place_has_one(tmp_path: pathlib.Path) -> None:
    with zygote(tmp_path) as own:
        options = ["--prewarm", "--zygote", str(own.socket)]
        second = own.run(*options)
        assert second.returncode == 1
        assert "listens" in second.stderr
        own.child.process.send_signal(signal.SIGTERM)
        assert own.child.wait() == 0
        assert not own.socket.exists()
