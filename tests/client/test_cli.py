"""The commands as a shell sees them: stdout, stderr and the exit code."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest

from hotshelf.cli import hotshelf
from hotshelf.cli.output import FORMATS, table
from hotshelf.transport import Reply, Request
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import BY_CODE, AccessDenied, HotshelfError, OriginUnavailable
from hotshelf_shared.recipe import LoraRecipe, Recipe

from .conftest import Run
from .fakes import FakeDaemon, UnixServer

REVISION, OTHER = Digest.of(b"sdxl"), Digest.of(b"sdxl before")
SNAPSHOT = {
    "revision": REVISION,
    "path": f"snapshots/{REVISION.hex}",
    "size": 6_938_000_000,
    "files": 17,
    "state": "ready",
    "leases": 0,
    "pinned": False,
    "last_used_at": "2026-11-21 10:00:00",
    "sources": ["s3://weights/sdxl"],
    "manifest": [{"path": "unet/config.json", "digest": REVISION, "size": 1680}],
    "skipped": [{"path": "evil.py", "reason": "python code"}],
    "signed_by": ["ab" * 32],
}


def commands(group: click.Group, *names: str) -> Iterator[tuple[str, click.Command]]:
    for name, command in sorted(group.commands.items()):
        if isinstance(command, click.Group):
            yield from commands(command, *names, name)
        else:
            yield " ".join((*names, name)), command


VERBS = dict(commands(hotshelf))


class TestEveryVerb:
    def test_the_verbs_of_the_contract_are_there(self) -> None:
        assert set(VERBS) >= {
            *(
                "acquire",
                "ls",
                "show",
                "pin",
                "unpin",
                "evict",
                "refresh",
                "rollback",
                "health",
                "doctor",
                "push",
                "env",
                "link",
            ),
            *("config show", "config validate", "db uri", "db query", "db export"),
            *(f"compile-cache {verb}" for verb in ("info", "ls", "load", "save", "clear", "serve")),
        }

    @pytest.mark.parametrize("name", VERBS)
    def test_help_has_an_example_of_this_verb_and_the_formats(self, run: Run, name: str) -> None:
        shown = run(*name.split(), "--help").stdout
        assert f"hotshelf {name}" in shown.split("Example:")[1]
        assert f"[{'|'.join(FORMATS)}]" in shown

    @pytest.mark.parametrize("name", ["evict", "unpin", "rollback", "compile-cache clear"])
    def test_what_destroys_has_a_dry_run(self, name: str) -> None:
        assert "dry_run" in {parameter.name for parameter in VERBS[name].params}

    @pytest.mark.parametrize("words", ["nope", "acquire", "acquire --hold soon x", "ls --format xml", "ls extra"])
    def test_a_wrong_command_line_is_2(self, run: Run, words: str) -> None:
        assert run(*words.split()).exit_code == 2

    @pytest.mark.parametrize("error", BY_CODE.values())
    def test_an_error_is_said_with_its_hint_and_ends_with_its_code(
        self, run: Run, daemon: FakeDaemon, error: type[HotshelfError]
    ) -> None:
        def fail(_: Request) -> Reply:
            raise error("it went wrong", hint="mend it")

        daemon.looks["GET", "/v1/snapshots"] = fail
        result = run("ls")
        assert (result.exit_code, result.stdout) == (error.exit_code, "")
        assert result.stderr == "hotshelf: it went wrong\n  mend it\n"

    def test_an_error_is_a_problem_in_json(self, run: Run) -> None:
        result = run("show", "sdxl", "--format", "json")
        assert (result.exit_code, json.loads(result.stderr)["code"]) == (3, "not_found")

    def test_a_daemon_that_is_not_there_is_69_and_named(self, run: Run, server: UnixServer) -> None:
        server.stop()
        result = run("ls")
        assert result.exit_code == 69
        assert str(server.path) in result.stderr


class TestAcquire:
    def test_the_path_alone_is_on_stdout(self, run: Run, daemon: FakeDaemon) -> None:
        result = run("acquire", "sdxl")
        assert result.exit_code == 0
        assert result.stdout == f"{daemon.store}/snapshots/{REVISION.hex}\n"
        assert "left out evil.py" in result.stderr

    def test_progress_is_lines_when_there_is_no_terminal(self, run: Run) -> None:
        assert "fetching" in run("acquire", "sdxl").stderr
        assert run("acquire", "sdxl", "--format", "quiet").stderr == ""

    def test_several_sources_are_several_lines(self, run: Run, daemon: FakeDaemon) -> None:
        assert len(run("acquire", "sdxl", "style").stdout.splitlines()) == 2
        assert daemon.asked("POST", "/v1/leases").body["sources"] == ["sdxl", "style"]

    def test_the_lease_outlives_the_command(self, run: Run, daemon: FakeDaemon) -> None:
        run("acquire", "sdxl", "--hold", "1h", "--allow", "*.json", "--allow", "*.txt", "--ignore", "x*", "--timeout", "90")
        body = daemon.asked("POST", "/v1/leases").body
        assert 80 < body.pop("timeout_s") <= 90
        assert body == {
            "source": "sdxl",
            "hold_s": 3600,
            "allow_patterns": ["*.json", "*.txt"],
            "ignore_patterns": ["x*"],
        }
        assert len(daemon.leases) == 1

    def test_json_says_everything_about_the_lease(self, run: Run, daemon: FakeDaemon) -> None:
        [lease] = json.loads(run("acquire", "sdxl", "--format", "json").stdout)["leases"]
        assert (lease["revision"], lease["kind"], lease["skipped"][0]["path"]) == (REVISION, "tree", "evil.py")
        assert lease["files"]["model.safetensors"]["size"] == 4
        assert lease["id"] in daemon.leases

    def test_a_revision_goes_with_one_source(self, run: Run, daemon: FakeDaemon) -> None:
        assert run("acquire", "a", "b", "--revision", REVISION).exit_code == 2
        assert run("acquire", "a", "--revision", REVISION).exit_code == 0
        assert daemon.asked("POST", "/v1/leases").body["revision"] == REVISION

    def test_a_refusal_ends_with_its_code(self, run: Run, daemon: FakeDaemon) -> None:
        def refuse(_: Request) -> Reply:
            raise AccessDenied("not you")

        daemon.acquires.append(refuse)
        assert run("acquire", "sdxl").exit_code == 6


class TestTheShelf:
    def test_ls_shows_a_line_each(self, run: Run, daemon: FakeDaemon) -> None:
        daemon.looks["GET", "/v1/snapshots"] = lambda _: Reply({"snapshots": [SNAPSHOT]})
        head, line = run("ls").stdout.splitlines()
        assert head.startswith("SOURCE")
        assert line.split("  ")[0] == "s3://weights/sdxl"
        assert "6.9 GB" in line
        assert run("ls", "--format", "quiet").stdout == f"{REVISION}\n"
        assert json.loads(run("ls", "--format", "json").stdout)["snapshots"] == [SNAPSHOT]

    def test_ls_shows_age_and_freshness(self, run: Run, daemon: FakeDaemon) -> None:
        refs = [{"freshness": "rolled_back"}, {"freshness": "rolled_back"}, {"freshness": "immutable"}]
        aged = {**SNAPSHOT, "age_s": 7_300.0, "checked_s": 59.6, "freshness": "rolled_back", "refs": refs}
        before = {**SNAPSHOT, "sources": [], "refs": [], "age_s": None, "checked_s": None, "freshness": "previous"}
        daemon.looks["GET", "/v1/snapshots"] = lambda _: Reply({"snapshots": [aged, before]})
        head, line, other = run("ls").stdout.splitlines()
        assert re.search(r"AGE +CHECKED +FRESHNESS", head)
        assert re.search(r" 2 h +60 s +rolled back, immutable  ", line)
        assert line.index("rolled back") == other.index("previous") == head.index("FRESHNESS")
        daemon.looks["GET", "/v1/snapshots/sdxl"] = lambda _: Reply(aged)
        assert "freshness rolled back, immutable, here for 2 h\n" in run("show", "sdxl").stdout

    def test_an_empty_shelf_prints_nothing_and_says_what_to_do(self, run: Run, daemon: FakeDaemon) -> None:
        daemon.looks["GET", "/v1/snapshots"] = lambda _: Reply({"snapshots": []})
        result = run("ls")
        assert result.stdout == ""
        assert "hotshelf acquire" in result.stderr

    def test_show_lists_the_files_what_was_left_out_and_who_signed(self, run: Run, daemon: FakeDaemon) -> None:
        daemon.looks["GET", "/v1/snapshots/s3%3A%2F%2Fweights%2Fsdxl"] = lambda _: Reply(SNAPSHOT)
        shown = run("show", "s3://weights/sdxl").stdout
        assert "unet/config.json" in shown
        assert "evil.py: python code" in shown
        assert f"signed    with the key {'ab' * 8}\n" in shown

    def test_a_pipeline_is_listed_by_the_start_of_its_key_and_shown_with_what_it_is_of(
        self, run: Run, daemon: FakeDaemon
    ) -> None:
        recipe = Recipe(base=REVISION, loras=(LoraRecipe(Digest.of(b"style"), 0.7),), dtype="float16")
        pipeline = {"key": recipe.key, "recipe": recipe.to_json(), "uid": 1000, "created_at": "2026-11-21 10:00:00"}
        snapshot = {**SNAPSHOT, "sources": [f"pipeline:{recipe.key}"]}
        daemon.looks["GET", "/v1/snapshots"] = lambda _: Reply({"snapshots": [snapshot]})
        assert run("ls").stdout.splitlines()[1].startswith(f"pipeline:{recipe.key[:12]}  ")
        daemon.looks["GET", f"/v1/snapshots/pipeline%3A{recipe.key}"] = lambda _: Reply({**snapshot, "pipelines": [pipeline]})
        shown = run("show", f"pipeline:{recipe.key}").stdout
        assert f"sources   pipeline:{recipe.key}\n" in shown
        assert f"{Digest.of(b'style')[:19]} at 0.7" in shown
        assert "float16" in shown
        assert "uid 1000" in shown

    def test_control_characters_from_a_bucket_do_not_reach_the_terminal(self) -> None:
        assert "\x1b" not in "".join(table(("path",), [("\x1b[2Jevil",)]))

    def test_pin_and_unpin(self, run: Run, daemon: FakeDaemon) -> None:
        daemon.looks["PUT", "/v1/pins/sdxl"] = lambda _: Reply({"target": "sdxl"})
        daemon.looks["DELETE", "/v1/pins/sdxl"] = lambda _: Reply(None, status=204)
        assert run("pin", "sdxl").stdout == "pinned sdxl\n"
        assert run("unpin", "sdxl").stdout == "unpinned sdxl\n"

    def test_a_dry_unpin_looks_and_leaves(self, run: Run, daemon: FakeDaemon) -> None:
        daemon.looks["GET", "/v1/pins"] = lambda _: Reply({"pins": [{"target": "sdxl"}]})
        assert run("unpin", "sdxl", "--dry-run").stdout == "would unpin sdxl\n"
        assert run("unpin", "other", "--dry-run").exit_code == 3
        assert {daemon.requests.get().method for _ in range(daemon.requests.qsize())} == {"GET"}

    @pytest.mark.parametrize(
        ("more", "said"),
        [
            ({}, f"s3://weights/sdxl is {REVISION} as before\n"),
            ({"changed": True}, f"s3://weights/sdxl is {REVISION}; what else is held of it has changed\n"),
            ({"previous": None, "changed": True}, f"s3://weights/sdxl is {REVISION}, fetched\n"),
            (
                {"previous": OTHER, "changed": True, "unfrozen": True},
                f"s3://weights/sdxl is {REVISION}, and was {OTHER[:19]}, and follows its origin again\n",
            ),
            ({"pinned": True}, "s3://weights/sdxl names its revision: that never changes\n"),
        ],
    )
    def test_refresh_says_what_became_of_it(self, run: Run, daemon: FakeDaemon, more: dict[str, Any], said: str) -> None:
        done = {"source": "s3://weights/sdxl", "revision": REVISION, "previous": REVISION, **more}
        progress = {"event": "progress", "phase": "fetch", "bytes_done": 3, "bytes_total": 6, "rate_bytes_s": 3.0}
        daemon.looks["POST", "/v1/refresh"] = lambda _: Reply(lines=[progress, {"event": "ready", "refreshed": done}])
        shown = run("refresh", "sdxl", "--timeout", "90")
        assert (shown.exit_code, shown.stdout) == (0, said)
        assert "fetch" in shown.stderr
        body = daemon.asked("POST", "/v1/refresh").body
        assert (body["source"], 80 < body["timeout_s"] <= 90) == ("sdxl", True)
        assert run("refresh", "sdxl", "--format", "quiet").stdout == f"{REVISION}\n"
        assert json.loads(run("refresh", "sdxl", "--format", "json").stdout) == done

    def test_a_refresh_that_fails_ends_with_its_code(self, run: Run, daemon: FakeDaemon) -> None:
        problem = OriginUnavailable("it is off").to_problem()
        daemon.looks["POST", "/v1/refresh"] = lambda _: Reply(lines=[{"event": "error", "problem": problem}])
        result = run("refresh", "sdxl")
        assert (result.exit_code, result.stdout) == (75, "")
        assert "it is off" in result.stderr

    def test_rollback_says_where_it_went_and_what_is_fetched_anew(self, run: Run, daemon: FakeDaemon) -> None:
        def answer(request: Request) -> Reply:
            done = {"source": "s3://weights/sdxl", "revision": REVISION, "previous": OTHER, "refs": [{"way": "forgotten"}]}
            return Reply({**done, "dry_run": request.body["dry_run"]})

        daemon.looks["POST", "/v1/rollback"] = answer
        first, second = run("rollback", "sdxl").stdout.splitlines()
        assert first == f"s3://weights/sdxl went back to {REVISION} from {OTHER[:19]}"
        assert second.endswith("if it was published: 1")
        assert run("rollback", "sdxl", "--dry-run").stdout.startswith(f"s3://weights/sdxl would go back to {REVISION}")
        assert run("rollback", "sdxl", "--format", "quiet").stdout == f"{REVISION}\n"
        asked = [daemon.requests.get().body for _ in range(daemon.requests.qsize())]
        assert asked == [{"source": "sdxl", "dry_run": dry_run} for dry_run in (False, True, False)]

    def test_evict_says_what_it_freed(self, run: Run, daemon: FakeDaemon) -> None:
        daemon.looks["DELETE", "/v1/snapshots/sdxl"] = lambda _: Reply({"revision": REVISION, "freed_bytes": 1000})
        assert run("evict", "sdxl").stdout == f"evicted {REVISION}, 1.0 kB freed\n"

    @pytest.mark.parametrize(("leases", "pinned", "code"), [(0, False, 0), (1, False, 1), (0, True, 1)])
    def test_a_dry_evict_foretells_a_refusal(self, run: Run, daemon: FakeDaemon, leases: int, pinned: bool, code: int) -> None:
        found = {**SNAPSHOT, "leases": leases, "pinned": pinned}
        daemon.looks["GET", "/v1/snapshots/sdxl"] = lambda _: Reply(found)
        assert run("evict", "sdxl", "--dry-run").exit_code == code
        assert {daemon.requests.get().method for _ in range(daemon.requests.qsize())} == {"GET"}


class TestTheDaemonsSide:
    @pytest.mark.parametrize(("ok", "word", "code"), [(True, "ok", 0), (False, "degraded", 1)])
    def test_health_is_an_exit_code(self, run: Run, daemon: FakeDaemon, ok: bool, word: str, code: int) -> None:
        daemon.looks["GET", "/v1/health"] = lambda _: Reply({"status": word, "checks": [{"check": "index", "ok": ok}]})
        result = run("health")
        assert (result.exit_code, result.stdout.split()[0]) == (code, word)
        assert run("health", "--degraded-ok").exit_code == 0

    def test_config_shows_where_a_value_came_from_and_no_secret(
        self, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pytest.importorskip("hotshelf_daemon.config")
        file = tmp_path / "c.yaml"
        file.write_text("origins: {b2: {secret_access_key: hunter2, buckets: [weights]}}\nrevalidate_s: 7\n")
        monkeypatch.setenv("HOTSHELF_BUDGET", "50%")
        result = run("config", "show", "--config", str(file), "--format", "json")
        rows = {row["key"]: (row["value"], row["from"]) for row in json.loads(result.stdout)["settings"]}
        assert rows["revalidate_s"] == ("7.0", f"file {file}")
        assert rows["budget"] == ("50%", "environment HOTSHELF_BUDGET")
        assert rows["socket"][1] == "flag --socket"
        assert "hunter2" not in result.stdout

    def test_an_unusable_configuration_is_78_with_the_nearest_key(self, run: Run, tmp_path: Path) -> None:
        file = tmp_path / "c.yaml"
        file.write_text("budgte: 1\n")
        result = run("config", "validate", "--config", str(file))
        assert result.exit_code == 78
        assert "'budget'" in result.stderr

    def test_doctor_is_10_when_it_finds_something(self, run: Run, server: UnixServer, tmp_path: Path) -> None:
        server.stop()
        result = run("doctor", "--format", "json")
        assert result.exit_code == 10
        assert "socket" in {finding["check"] for finding in json.loads(result.stdout)["findings"]}

    def test_push_wants_a_folder(self, run: Run, tmp_path: Path) -> None:
        assert run("push", str(tmp_path / "none"), "s3://weights/x").exit_code == 2
        assert run("push", str(tmp_path), "s3://weights/x").exit_code == 3

    def test_without_the_daemons_libraries_it_says_what_to_install(self, server: UnixServer) -> None:
        script = (
            "import sys; sys.modules['boto3'] = None; sys.argv = ['hotshelf', 'config', 'validate'];"
            "from hotshelf.__main__ import main; main()"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 78
        assert "hotshelf[daemon]" in done.stderr

    @pytest.mark.parametrize("missing", ["click", "rich"])
    def test_without_the_commands_libraries_it_says_what_to_install(self, missing: str) -> None:
        script = f"import sys; sys.modules[{missing!r}] = None; from hotshelf.__main__ import main; sys.exit(main())"
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr == "The hotshelf command needs more: pip install 'hotshelf[cli]'\n"


def test_the_options_in_the_examples_exist() -> None:
    for name, command in VERBS.items():
        example = (command.epilog or "").split("Example:")[1].partition(" -m ")[0]  # what follows is a program's
        words = re.findall(r"--[a-z-]+", example)
        options = {flag for parameter in command.params for flag in parameter.opts}
        assert set(words) <= options, name
