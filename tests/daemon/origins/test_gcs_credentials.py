"""Who asks Google Cloud Storage: a key, whatever is found around here, or nobody; and what is told of any of it: a name."""

from __future__ import annotations

import json
import logging
import os
import pathlib
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from hotshelf_daemon import logs
from hotshelf_daemon.origin import gcs_client
from hotshelf_daemon.origin.gcs import GcsOrigin
from hotshelf_shared.errors import AccessDenied, BadConfiguration, OriginUnavailable
from tests.daemon.conftest import MakeDaemon
from tests.daemon.looking import granted, refused, tree_of
from tests.daemon.origins.worlds import gcs_origin
from tests.faults.scripted_gcs import EMAIL, ScriptedGcs, refusal, service_account_key
from tests.faults.scripted_origin import Ask, Reply

KEY, DATA = "m/w.safetensors", b"weights"


@pytest.fixture
def server() -> Iterator[ScriptedGcs]:
    """One that serves whoever shows its token."""
    with ScriptedGcs() as running:
        running.objects[KEY] = DATA
        running.token = "CANARY-token"
        yield running


@pytest.fixture
def key_file(server: ScriptedGcs, tmp_path: pathlib.Path) -> pathlib.Path:
    file = tmp_path / "gcs.json"
    file.write_text(service_account_key(server.endpoint_url))
    return file


@pytest.fixture
def origin(server: ScriptedGcs, key_file: pathlib.Path) -> GcsOrigin:
    return of_key(server, key_file)


def of_key(server: ScriptedGcs, file: pathlib.Path) -> GcsOrigin:
    return gcs_origin(server.endpoint_url, unsigned=False, service_account_file=str(file))


def around_here(server: ScriptedGcs) -> GcsOrigin:
    return gcs_origin(server.endpoint_url, unsigned=False)


def kinds(server: ScriptedGcs) -> list[str]:
    return [ask.kind for ask in server.asked]


# ---- a service account's key


def test_a_key_is_changed_for_a_token_once_and_every_question_shows_it(server: ScriptedGcs, origin: GcsOrigin) -> None:
    assert origin.read(KEY, 100) == DATA
    assert [obj.key for obj in origin.list("m")] == [KEY]
    assert kinds(server) == ["TOKEN", "GET", "LIST"]
    assert b"assertion=" in server.asked[0].body
    assert b"PRIVATE" not in server.asked[0].body
    assert "authorization" not in server.asked[0].headers


def test_a_token_that_has_expired_is_renewed_and_the_question_asked_again(server: ScriptedGcs, origin: GcsOrigin) -> None:
    assert origin.read(KEY, 100) == DATA
    server.token = "the next"
    server.asked.clear()
    assert origin.read(KEY, 100) == DATA
    assert kinds(server) == ["GET", "TOKEN", "GET"]


def test_a_denial_names_the_account_and_tells_nothing_of_its_key(server: ScriptedGcs, origin: GcsOrigin) -> None:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.status, reply.body = 403, refusal(403, "forbidden", "CANARY-message")
        reply.headers["Content-Length"] = str(len(reply.body))

    server.misdeed(spoil)
    with pytest.raises(AccessDenied) as denied:
        origin.read(KEY, 100)
    assert EMAIL in denied.value.message
    assert "CANARY" not in str(denied.value)
    assert "PRIVATE" not in str(denied.value)


def test_an_account_that_gets_no_token_is_denied_and_named(server: ScriptedGcs, origin: GcsOrigin) -> None:
    def spoil(_ask: Ask, reply: Reply) -> None:
        reply.status, reply.body = 400, b'{"error": "invalid_grant", "error_description": "Invalid JWT Signature."}'
        reply.headers["Content-Length"] = str(len(reply.body))

    server.misdeed(spoil, on="TOKEN")
    with pytest.raises(AccessDenied, match="invalid_grant") as denied:
        origin.read(KEY, 100)
    assert EMAIL in denied.value.message
    assert "clock" in denied.value.hint
    with pytest.raises(AccessDenied):
        origin.read(KEY, 100)
    assert kinds(server) == ["TOKEN"]  # who waited meanwhile does not ask again at once


def test_a_token_that_many_wait_for_is_asked_for_once(server: ScriptedGcs, origin: GcsOrigin) -> None:
    with ThreadPoolExecutor(8) as threads:
        assert {*threads.map(lambda _: origin.read(KEY, 100), range(24))} == {DATA}
    assert kinds(server).count("TOKEN") == 1


def test_no_token_because_nobody_answers_is_worth_a_retry(server: ScriptedGcs, tmp_path: pathlib.Path) -> None:
    file = tmp_path / "gcs.json"
    file.write_text(service_account_key("http://127.0.0.1:9"))
    with pytest.raises(OriginUnavailable) as failure:
        of_key(server, file).read(KEY, 100)
    assert failure.value.retryable


def test_a_key_that_was_exchanged_is_read_anew_when_the_old_one_is_refused(
    server: ScriptedGcs, origin: GcsOrigin, key_file: pathlib.Path
) -> None:
    assert origin.read(KEY, 100) == DATA
    server.objects["secret"] = b"for the other only"

    def only_the_other(ask: Ask, reply: Reply) -> None:
        if ask.headers.get("authorization") != "Bearer the other's":
            reply.status, reply.body = 403, refusal(403, "forbidden")
            reply.headers["Content-Length"] = str(len(reply.body))

    server.misdeed(only_the_other)
    with pytest.raises(AccessDenied):
        origin.read("secret", 100)
    server.asked.clear()
    with pytest.raises(AccessDenied):
        origin.read("secret", 100)
    assert kinds(server) == ["GET"]  # the same key is not tried again
    fresh = key_file.with_suffix(".new")
    fresh.write_text(service_account_key(server.endpoint_url, client_email="other@project"))
    os.rename(fresh, key_file)
    server.token = "the other's"
    assert origin.read("secret", 100) == b"for the other only"


WRONG: dict[str, tuple[Any, str]] = {
    "without a name": ({"client_email": None}, "lacks client_email"),
    "without a key": ({"private_key": None}, "lacks private_key"),
    "without a place to ask": ({"token_uri": None}, "lacks token_uri"),
    "with an empty key": ({"private_key": ""}, "lacks private_key"),
    "with a number for a key": ({"private_key": 7}, "lacks private_key"),
    "with a key that is none": ({"private_key": "CANARY"}, "private_key that is none"),
    "with half a key": ({"private_key": "-----BEGIN PRIVATE KEY-----\nCANARY"}, "private_key that is none"),
    "of another kind": ({"type": "authorized_user"}, "no service account's key"),
    "of none": ({"type": None}, "no service account's key"),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_key_that_cannot_be_used_says_what_it_lacks_and_none_of_its_values(
    server: ScriptedGcs, tmp_path: pathlib.Path, name: str
) -> None:
    changes, said = WRONG[name]
    file = tmp_path / "gcs.json"
    file.write_text(service_account_key(server.endpoint_url, **changes))
    with pytest.raises(BadConfiguration, match=said) as failure:
        of_key(server, file).head(KEY)
    assert str(file) in failure.value.message
    told = str(failure.value) + repr(failure.value.__cause__) + str(failure.value.to_problem())
    assert not [value for value in ("CANARY", EMAIL, "BEGIN", server.endpoint_url) if value in told]
    assert not server.asked


@pytest.mark.parametrize("data", [b"", b"CANARY", b'{"type": "CANARY', b"[]", b"\xff\xfe", b"[" * 50_000, b" " * 70_000])
def test_a_file_that_is_no_key_is_said_to_be_none(server: ScriptedGcs, tmp_path: pathlib.Path, data: bytes) -> None:
    file = tmp_path / "gcs.json"
    file.write_bytes(data)
    with pytest.raises(BadConfiguration) as failure:
        of_key(server, file).head(KEY)
    assert "CANARY" not in str(failure.value)


@pytest.mark.parametrize("path", ["/nowhere/gcs.json", "/", "a\0b"])
def test_a_file_that_cannot_be_read_is_named(server: ScriptedGcs, path: str) -> None:
    with pytest.raises(BadConfiguration, match=r"gcs\.service_account_file"):
        gcs_origin(server.endpoint_url, unsigned=False, service_account_file=path).head(KEY)


def test_no_log_line_holds_the_key(server: ScriptedGcs, origin: GcsOrigin, key_file: pathlib.Path) -> None:
    origin.head(KEY)
    record = logging.makeLogRecord({"msg": "oh no: " + key_file.read_text(), "key": json.loads(key_file.read_text())})
    line = logs.JsonLines(logs._redact).format(record)
    assert not [one for one in key_lines(key_file) if one in line]
    assert EMAIL in line


# ---- whatever is found around here


def test_the_variable_that_google_s_tools_know_names_a_key(
    server: ScriptedGcs, key_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file))
    assert around_here(server).read(KEY, 100) == DATA
    assert kinds(server) == ["TOKEN", "GET"]


def test_a_key_that_the_variable_names_and_is_not_there_is_no_reason_to_ask_unsigned(
    server: ScriptedGcs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", "/nowhere/gcs.json")
    with pytest.raises(BadConfiguration, match=r"/nowhere/gcs.json was not found") as failure:
        around_here(server).read(KEY, 100)
    assert "GOOGLE_APPLICATION_CREDENTIALS" in failure.value.hint
    assert not server.asked


def test_on_google_s_machines_the_metadata_service_has_the_token(server: ScriptedGcs, monkeypatch: pytest.MonkeyPatch) -> None:
    here = server.endpoint_url.removeprefix("http://")
    monkeypatch.delenv("NO_GCE_CHECK")
    monkeypatch.setenv("GCE_METADATA_HOST", here)
    monkeypatch.setenv("GCE_METADATA_IP", here)
    origin = around_here(server)
    assert origin.read(KEY, 100) == DATA
    assert origin.read(KEY, 100) == DATA
    assert kinds(server)[-2:] == ["GET", "GET"]
    assert set(kinds(server)[:-2]) == {"METADATA"}
    server.misdeed(lambda _, reply: setattr(reply, "status", 403), on="GET")
    with pytest.raises(AccessDenied, match=EMAIL):
        origin.read(KEY, 100)


def test_where_nothing_is_found_nobody_asks_and_a_public_bucket_answers(
    server: ScriptedGcs, key_file: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.token = None
    origin = around_here(server)
    assert origin.read(KEY, 100) == DATA
    assert "authorization" not in server.asked[-1].headers
    server.token = "CANARY-token"
    with pytest.raises(AccessDenied, match="nobody"):
        origin.read(KEY, 100)
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(key_file))
    with pytest.raises(AccessDenied, match="nobody"):
        origin.read(KEY, 100)  # it has just looked
    monkeypatch.setattr(gcs_client, "LOOK_AGAIN_S", 0.0)
    assert origin.read(KEY, 100) == DATA  # a pod's identity may come after the pod


def test_what_netrc_has_takes_no_token_s_place(
    server: ScriptedGcs, origin: GcsOrigin, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("default login somebody password CANARY\n")
    monkeypatch.setenv("NETRC", str(netrc))
    assert origin.read(KEY, 100) == DATA


# ---- a daemon


def test_a_daemon_reads_with_a_key_that_nothing_shows(
    make_daemon: MakeDaemon, server: ScriptedGcs, key_file: pathlib.Path
) -> None:
    settings = {"endpoint_url": server.endpoint_url, "service_account_file": str(key_file)}
    daemon = make_daemon(gcs=settings, log_level="debug")
    assert tree_of(daemon, granted(daemon.acquire("gs://weights/m"))) == {"w.safetensors": DATA}
    server.token = None
    server.misdeed(lambda _, reply: setattr(reply, "status", 403), on="LIST")
    refused(daemon.acquire("gs://weights/other"), "access_denied")
    shown = daemon.log_text + json.dumps(daemon.call("GET", "/v1/status").body)
    assert not [one for one in ("CANARY", "PRIVATE KEY", *key_lines(key_file)) if one in shown]


def key_lines(file: pathlib.Path) -> list[str]:
    return [line for line in json.loads(file.read_text())["private_key"].splitlines() if "-" not in line]


def test_a_daemon_with_a_key_that_cannot_be_used_does_not_start(
    make_daemon: MakeDaemon, server: ScriptedGcs, tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "gcs.json"
    file.write_text(service_account_key(server.endpoint_url, private_key=None))
    daemon = make_daemon(start=False, gcs={"service_account_file": str(file)})
    daemon.launch()
    assert daemon.wait() == 78
    assert "lacks private_key" in daemon.log_text
    assert EMAIL not in daemon.log_text


WITHOUT = """
import sys
class Nowhere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("google", "requests"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Nowhere())
"""


def test_without_the_extra_a_daemon_serves_and_says_what_to_install(
    make_daemon: MakeDaemon, tmp_path: pathlib.Path, seaweedfs: Any, prefix: str, bucket: str
) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(WITHOUT)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    daemon = make_daemon(origins={"weed": seaweedfs.settings(bucket)}, env={"PYTHONPATH": path})
    problem = refused(daemon.acquire("gs://weights/m"), "bad_configuration")
    assert "hotshelf[gcs]" in problem["hint"]
    with seaweedfs.client() as client:
        client.put_object(Bucket=bucket, Key=f"{prefix}/w.safetensors", Body=DATA)
    assert tree_of(daemon, granted(daemon.acquire(f"s3://{bucket}/{prefix}"))) == {"w.safetensors": DATA}


def test_google_s_libraries_are_not_loaded_before_somebody_asks() -> None:
    script = (
        "import sys, hotshelf_daemon.app\n"
        "from hotshelf_daemon.config import Settings\n"
        "from hotshelf_daemon.origin import gcs\n"
        "gcs.origin_of('weights', Settings())\n"
        "print([name for name in sys.modules if name.startswith(('google.auth', 'google.cloud', 'requests'))])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
