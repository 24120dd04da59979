"""The README's program as processes: what the first one compiled, the second one, with another inductor directory, does not."""

from __future__ import annotations

import json
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
from click.testing import CliRunner, Result

from hotshelf.cli import hotshelf as command
from tests.compiling.conftest import lay, tree_of
from tests.daemon_process import Daemon
from tests.test_readme import block
from tests.waiting import wait_until

pytestmark = pytest.mark.torch

#: What the README leaves to its reader: a model, a call, and here a look at what torch counted.
YOUR_MODEL = """
torch.set_num_threads(1)

class YourModel(torch.nn.Module):
    def forward(self, prompt):
        return (torch.arange(64.0) * 2).sin()
"""
REPORT = """
import json
from hotshelf import compiling
model = Model()
model.load()
counted = compiling.counters()
print(json.dumps({"drawn": model.model("dummy input").tolist(), "hits": counted.hits, "misses": counted.misses}))
"""
#: Inductor believes the CPU instead of compiling a trial for each instruction set, and running it in a process of its own.
QUICK = {"TORCHINDUCTOR_VEC_ISA_OK": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


class Run(NamedTuple):
    told: dict[str, Any]
    log: str


def program(*, remark: str = "") -> str:
    text = block("python", "load_compile_cache").replace('"cuda"', '"cpu"')
    loud = "import logging\nlogging.basicConfig()\nlogging.getLogger('b10_transfer').setLevel(logging.DEBUG)\n"
    return f"{loud}{text}\n{YOUR_MODEL}\n{REPORT}\n# {remark}\n"


def run(daemon: Daemon, folder: pathlib.Path, code: str) -> Run:
    """In a place of its own: torch puts inductor's directory below the temporary folder."""
    (folder / "tmp").mkdir(parents=True, exist_ok=True)
    (folder / "model.py").write_text(code)
    done = subprocess.run(
        [sys.executable, "model.py"],
        cwd=folder, env={**daemon.environment, "TMPDIR": str(folder / "tmp"), **QUICK}, capture_output=True, text=True,
        timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Run(json.loads(done.stdout.splitlines()[-1]), done.stderr)


@pytest.mark.needs("g++")
@pytest.mark.timeout(600)
def test_the_program_of_the_readme_compiles_once(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    first = run(daemon, tmp_path / "first", program())
    assert "there is no bundle" in first.log
    assert (first.told["hits"], first.told["misses"]) == (0, 1)
    second = run(daemon, tmp_path / "second", program())
    assert "loaded bundle" in second.log
    assert (second.told["hits"], second.told["misses"]) == (1, 0)
    assert second.told["drawn"] == first.told["drawn"]
    built = [{path for path in tree_of(tmp_path / who) if path.endswith(".so")} for who in ("first", "second")]
    assert built[0] == built[1]  # nothing more was compiled
    another = program(remark="another model").replace("= torch.compile(self.model", "= (lambda model, mode: model)(self.model")
    assert "there is no bundle" in run(daemon, tmp_path / "other", another).log


@pytest.fixture
def hotshelf(daemon: Daemon, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """The command, in this process: torch is imported once. Inductor's directory has a file in it."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(lay(tmp_path / "torchinductor_me", {"ab/cabc.so": b"compiled"})))
    monkeypatch.setenv("LOCAL_WORK_DIR", str(tmp_path))
    of = ["--socket", str(daemon.socket), "--store", str(daemon.store)]
    return lambda *words: CliRunner().invoke(command, [*of, *words], prog_name="hotshelf")


def test_the_commands_of_the_readme(hotshelf: Callable[..., Result], tmp_path: pathlib.Path) -> None:
    lines = [shlex.split(line)[1:] for line in block("sh", "compile-cache info").splitlines()]
    done = [hotshelf(*words) for words in lines]
    assert [one.exit_code for one in done] == [0] * len(lines), done
    said = "".join(one.stdout for one in done)
    assert "saved bundle:torch_" in said
    assert "would delete 8 B" in said
    assert tree_of(tmp_path / "torchinductor_me") == {"ab/cabc.so": b"compiled"}


def test_the_commands_end_with_the_codes_of_what_happened(
    hotshelf: Callable[..., Result], tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = "compile-cache"
    assert hotshelf(words, "load").exit_code == 2  # of which model?
    assert hotshelf(words, "save", "--namespace", "codes").exit_code == 0
    assert json.loads(hotshelf(words, "save", "--namespace", "codes", "--format", "json").stdout)["status"] == "skipped"
    assert hotshelf(words, "clear").exit_code == 0
    assert tree_of(tmp_path / "torchinductor_me") == {}
    assert hotshelf(words, "save", "--namespace", "nothing").exit_code == 1
    assert hotshelf(words, "load", "--namespace", "nobody").exit_code == 3
    assert json.loads(hotshelf(words, "load", "--namespace", "codes", "--format", "json").stdout)["status"] == "success"
    assert tree_of(tmp_path / "torchinductor_me") == {"ab/cabc.so": b"compiled"}
    told = json.loads(hotshelf(words, "info", "--format", "json").stdout)
    assert told["facts"]["torch"].partition("+")[0] in told["environment_key"]
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", "/")
    assert hotshelf(words, "clear").exit_code == 2
    monkeypatch.setenv("MAX_CACHE_SIZE_MB", "much")
    assert hotshelf(words, "load", "--namespace", "codes").exit_code == 2


def test_beside_vllm_it_waits_until_it_is_told_to_end(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    script = "import sys; from hotshelf.__main__ import serve_compile_cache; sys.exit(serve_compile_cache())"
    with (tmp_path / "log").open("w") as log:
        waiting = subprocess.Popen(
            [sys.executable, "-c", script, "--url", "http://127.0.0.1:9/health"],
            env={**daemon.environment, "VLLM_CACHE_ROOT": str(tmp_path / "vllm"), "TMPDIR": str(tmp_path)}, stderr=log,
        )  # fmt: skip
        try:
            wait_until(lambda: "there is no bundle" in (tmp_path / "log").read_text(), timeout_s=120)
            waiting.send_signal(signal.SIGTERM)
            assert waiting.wait(30) == 128 + signal.SIGTERM
        finally:
            waiting.kill()
            waiting.wait()
    assert "Traceback" not in (tmp_path / "log").read_text()
