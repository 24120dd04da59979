"""Whether a fork would be what a plain process would be: decided from what both stand on."""

from __future__ import annotations

import os
import socket
from typing import Any

import pytest

from hotshelf.prewarm.fitting import environment_fits, fits, shadowed
from hotshelf.prewarm.footing import Footing
from hotshelf.prewarm.program import Program
from hotshelf.prewarm.request import Request, send
from hotshelf_shared.errors import InvalidRequest

HERE = Footing.here()


def test_a_process_fits_itself() -> None:
    assert fits(Footing.here(), Footing.here()) is None


@pytest.mark.parametrize("name", sorted(HERE.circumstances))
def test_every_circumstance_counts_and_is_named(name: str) -> None:
    other = Footing({**HERE.circumstances, name: "another"}, HERE.environment)
    assert (fits(HERE, other) or "").startswith(name)
    missing = Footing({key: value for key, value in HERE.circumstances.items() if key != name}, HERE.environment)
    assert fits(missing, HERE) is not None


READ_ONCE = ("PYTHONPATH", "LD_PRELOAD", "LANG", "LC_ALL", "HOME", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS", "HF_HOME",
             "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DIFFUSERS_DISABLE_REMOTE_CODE", "TORCH_HOME", "PYTORCH_CUDA_ALLOC_CONF",
             "CUDA_LAUNCH_BLOCKING", "USE_TORCH", "XDG_CACHE_HOME")  # fmt: skip
READ_LATER = ("CUDA_VISIBLE_DEVICES", "HOTSHELF_SOCKET", "PIPELINE_STORE", "PATH", "PWD", "TERM", "HTTPS_PROXY", "B2_KEY_ID")


@pytest.mark.parametrize("name", READ_ONCE)
def test_what_is_read_when_the_libraries_are_imported_must_be_the_same(name: str) -> None:
    for zygote, worker in (({}, {name: "1"}), ({name: "1"}, {}), ({name: "1"}, {name: "hunter2"})):
        said = environment_fits(zygote, worker)
        assert said == f"the variable {name} differs"
    assert environment_fits({name: "1"}, {name: "1"}) is None


@pytest.mark.parametrize("name", READ_LATER)
def test_what_is_read_later_may_differ(name: str) -> None:
    assert environment_fits({name: "1"}, {name: "2"}) is None
    assert environment_fits({}, {name: "2"}) is None


def test_a_module_beside_the_program_shadows_what_came_from_elsewhere() -> None:
    loaded = {"torch": "/site/torch/__init__.py", "mine": "/app/mine.py", "sys": None}
    assert shadowed(["torch.py"], loaded, "/app") == "torch"
    assert shadowed(["torch"], loaded, "/app") == "torch"
    assert shadowed(["torch.cpython-311-x86_64-linux-gnu.so"], loaded, "/app") == "torch"
    assert shadowed(["mine.py", "torch.txt", "other.py", "torchvision"], loaded, "/app") is None


@pytest.mark.parametrize(
    ("words", "parsed"),
    [
        ((), None),
        (("--",), None),
        (("-m", "a.b", "-m", "--help"), Program("a.b", ("-m", "--help"), is_module=True)),
        (("-ma",), Program("a", (), is_module=True)),
        (("x.py", "--", "-m"), Program("x.py", ("--", "-m"), is_module=False)),
        (("--", "x.py"), Program("x.py", (), is_module=False)),
    ],
)
def test_a_program_is_said_in_python_s_words(words: tuple[str, ...], parsed: Program | None) -> None:
    assert Program.parse(words) == parsed
    if parsed is not None:
        assert Program.parse(parsed.words) == parsed


@pytest.mark.parametrize("words", [("-m",), ("-c", "1"), ("--serve",)])
def test_what_is_no_program_is_refused(words: tuple[str, ...]) -> None:
    with pytest.raises(InvalidRequest):
        Program.parse(words)


def test_words_that_have_arrived_are_no_failure_when_the_other_side_is_quick_to_go() -> None:
    """Or a stub would start its program a second time, after a worker that was done at once."""

    class Quick(socket.socket):
        def sendmsg(self, *args: Any) -> int:
            sent = super().sendmsg(*args)
            other.close()
            return sent

    one, other = socket.socketpair()
    with Quick(fileno=one.detach()) as quick:
        send(quick, {"go": True})


def test_a_request_survives_the_wire_and_hostile_ones_do_not() -> None:
    asked = Request(
        Program("x.py", ("\udcff",), is_module=False), HERE, "/python", os.getcwd(), 0o22, (0, 1, 2), ignored=(1,), blocked=(2,)
    )
    body = asked.to_json()
    assert Request.parse(body) == asked
    hostile = {"program": [], "circumstances": [], "environment": {"A": 1}, "executable": None, "folder": "\0", "umask": -1,
               "files": [1 << 40], "ignored": [True], "blocked": "x"}  # fmt: skip
    for name, value in hostile.items():
        for wrong in ({**body, name: value}, {key: one for key, one in body.items() if key != name}):
            with pytest.raises(InvalidRequest):
                Request.parse(wrong)
