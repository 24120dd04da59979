"""The doctor finds what is wrong, names what to do, and is content with a healthy shelf."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hotshelf_daemon import doctor
from hotshelf_daemon.config import Settings
from hotshelf_daemon.doctor import Finding, examine
from tests import objects, signing
from tests.daemon_process import Daemon
from tests.faults import origin_cases as cases
from tests.faults.scripted_origin import ScriptedOrigin, Spoil
from tests.servers.moto import Moto
from tests.servers.ports import free_ports


@pytest.fixture
def settings(tmp_path: Path) -> Callable[..., Settings]:
    def make(**changed: Any) -> Settings:
        store = tmp_path / "shelf"
        store.mkdir(mode=0o750, exist_ok=True)
        return Settings.model_validate({"store": str(store), "socket": str(tmp_path / "s"), **changed})

    return make


def of(check: str, findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.check == check]


def test_a_healthy_shelf_has_no_findings(tmp_path: Path) -> None:
    with Daemon(tmp_path / "d") as daemon:
        kind = doctor.file_system_of(str(daemon.store))
        findings = examine(Settings(store=str(daemon.store), socket=str(daemon.socket)))
    assert [finding for finding in findings if kind != "overlay" or finding.check != "store"] == []


def test_every_finding_says_how_to_mend_it(settings: Callable[..., Settings]) -> None:
    findings = examine(settings(store="/nowhere"))
    assert {finding.check for finding in findings} >= {"socket", "store"}
    assert all(finding.message and finding.fix for finding in findings)
    assert [finding.level for finding in findings] == sorted(finding.level for finding in findings)


def test_a_hub_s_cache_that_cannot_be_read_is_named(settings: Callable[..., Settings], tmp_path: Path) -> None:
    (tmp_path / "hub").mkdir()
    [finding] = of("hf.caches", examine(settings(hf={"caches": [str(tmp_path / "hub"), "/nowhere/hub"]})))
    assert "/nowhere/hub" in finding.message
    assert "HF_HOME" in finding.fix


def test_a_socket_that_nobody_serves_is_named(settings: Callable[..., Settings], tmp_path: Path) -> None:
    stale = socket.socket(socket.AF_UNIX)
    stale.bind(str(tmp_path / "s"))
    stale.close()
    [finding] = of("socket", examine(settings()))
    assert str(tmp_path / "s") in finding.message
    assert "hotshelfd" in finding.fix


def test_a_socket_without_permission_says_whose_it_is(
    settings: Callable[..., Settings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "s").touch(mode=0o600)

    class Refusing(socket.socket):
        def connect(self, address: object) -> None:
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.socket, "socket", Refusing)
    [finding] = of("socket", examine(settings()))
    assert f"uid {os.getuid()}" in finding.message
    assert "supplementary group" in finding.fix


def test_a_store_that_everyone_may_write_is_an_error(settings: Callable[..., Settings]) -> None:
    made = settings()
    os.chmod(made.store, 0o777)
    assert f"chmod o-w {made.store}" in {finding.fix for finding in of("store", examine(made))}


@pytest.mark.parametrize(("kind", "level"), [("nfs4", "error"), ("fuse.s3fs", "error"), ("ext4", None)])
def test_an_index_on_a_network_file_system_is_an_error(
    settings: Callable[..., Settings], monkeypatch: pytest.MonkeyPatch, kind: str, level: str | None
) -> None:
    monkeypatch.setattr(doctor, "file_system_of", lambda _: kind)
    assert [finding.level for finding in of("index", examine(settings()))] == ([level] if level else [])


def test_a_budget_beyond_the_disk_is_an_error(settings: Callable[..., Settings]) -> None:
    [finding] = of("room", examine(settings(budget=1 << 60)))
    assert (finding.level, "budget" in finding.fix) == ("error", True)


def test_a_link_to_nothing_is_found(settings: Callable[..., Settings]) -> None:
    made = settings()
    snapshot = Path(made.store, "snapshots", "ab")
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/sha256/ab/abcd")
    [finding] = of("layout", examine(made))
    assert "model.safetensors" in finding.message


def test_an_origin_that_does_not_answer_is_found_for_every_bucket_in_use(settings: Callable[..., Settings]) -> None:
    [port] = free_ports(1)
    origin = {
        "endpoint_url": f"http://127.0.0.1:{port}",
        "region": "us-east-1",
        "access_key_id": "key",
        "secret_access_key": "hunter2",
    }
    made = settings(origins={"b2": origin}, models={"sdxl": {"source": "s3://weights/sdxl"}})
    [finding] = of("origin b2", examine(made))
    assert "s3://weights" in finding.message
    assert "hunter2" not in finding.message + finding.fix


def test_a_web_server_is_asked_for_what_a_name_stands_for(settings: Callable[..., Settings]) -> None:
    [port] = free_ports(1)
    host, models = f"127.0.0.1:{port}", {"sdxl": {"source": f"https://127.0.0.1:{port}/sdxl"}}
    [finding] = of(f"origin {host}", examine(settings(models=models)))
    assert "none of the configured hosts" in finding.message
    assert f"hosts: [{host}]" in finding.fix
    [finding] = of(f"origin {host}", examine(settings(models=models, hosts=[host])))
    assert "cannot be reached" in finding.message


# ---- mirrors


@pytest.fixture
def published(moto: Moto, bucket: str, prefix: str) -> dict[str, Any]:
    """Settings of an origin that has a published model, and of that model."""
    objects.put(moto, bucket, prefix, objects.published(objects.model("doctor")))
    return {"origins": {"it": moto.settings(bucket)}, "models": {"sd": {"source": f"s3://{bucket}/{prefix}"}}}


def mirrored_by(published: dict[str, Any], *mirrors: str) -> dict[str, Any]:
    return {**published, "origins": {"it": {**published["origins"]["it"], "mirrors": mirrors}}}


def mirror_of(published: dict[str, Any], server: ScriptedOrigin, spoil: Spoil) -> str:
    """The scripted server as one that has all of it, its answers spoilt so."""
    prefix = published["models"]["sd"]["source"].rpartition("/")[2]
    pushed = objects.published(objects.model("doctor"))
    server.objects.update({f"{prefix}/{key}": data for key, data in pushed.items()})
    server.misdeed(spoil)
    return server.endpoint_url


FOR_EVER = cases.header("Cache-Control", "public, max-age=31536000, immutable")


def test_a_mirror_that_serves_ranges_and_may_keep_them_is_fine(
    settings: Callable[..., Settings], published: dict[str, Any]
) -> None:
    with ScriptedOrigin() as server:
        findings = examine(settings(**mirrored_by(published, mirror_of(published, server, FOR_EVER))))
        assert not [finding for finding in findings if finding.check.startswith("mirror")]
        assert server.asked


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (cases.both(FOR_EVER, cases.whole), "ignores Range"),
        (cases.both(FOR_EVER, cases.body(cases.flip)), "wrong bytes"),
        (cases.refuse(404), "does not have"),
        (cases.refuse(403), "403"),
        (cases.both(FOR_EVER, cases.header("Set-Cookie", "a=b")), "cookies"),
        (cases.both(FOR_EVER, cases.header("Vary", "*")), "vary"),
        (cases.header("Cache-Control", None), "how long"),
        (cases.header("Cache-Control", "no-cache"), "no-cache"),
        (cases.header("Cache-Control", "public, max-age=60"), "max-age=60"),
    ],
)
def test_a_mirror_that_is_little_help_is_named_with_what_to_do(
    settings: Callable[..., Settings], published: dict[str, Any], spoil: Spoil, says: str
) -> None:
    with ScriptedOrigin() as server:
        url = mirror_of(published, server, spoil)
        found = of(f"mirror {url.removeprefix('http://')}", examine(settings(**mirrored_by(published, url))))
    assert any(says in finding.message for finding in found), found
    assert all(finding.fix for finding in found)


def test_a_mirror_that_does_not_answer_is_named(settings: Callable[..., Settings], published: dict[str, Any]) -> None:
    [port] = free_ports(1)
    [finding] = of(f"mirror 127.0.0.1:{port}", examine(settings(**mirrored_by(published, f"http://127.0.0.1:{port}"))))
    assert "cannot be reached" in finding.message


@pytest.mark.parametrize("date", [None, "yesterday", "Mon, 32 Foo 2026 99:99:99 GMT"])
def test_a_date_that_cannot_be_read_is_no_skew(date: str | None) -> None:
    assert doctor._skew_s(date) == 0.0


def test_a_clock_is_compared_with_the_origins() -> None:
    assert doctor._skew_s("Thu, 01 Jan 2015 00:00:00 GMT") > 3e8


def test_keys_that_verify_nothing_are_findings_that_name_their_setting(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    good, absent = signing.pair(tmp_path, "good"), str(tmp_path / "none.pub")
    origin = {"endpoint_url": "http://127.0.0.1:9", "keys": [str(good.public), absent, str(good.private)]}
    findings = of("signatures weed", examine(settings(origins={"weed": {**origin, "verify": "required"}})))
    assert [(finding.level, "origins.weed.keys" in finding.message) for finding in findings] == [("error", True)] * 2
    assert [path in finding.message for path, finding in zip((absent, str(good.private)), findings, strict=True)] == [True] * 2
    [idle] = of("signatures weed", examine(settings(origins={"weed": {**origin, "keys": [str(good.public)]}})))
    assert (idle.level, "origins.weed.verify" in idle.fix) == ("warning", True)


def test_pipelines_published_to_where_signatures_are_required_are_a_finding(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    keys = [str(signing.pair(tmp_path, "good").public)]
    origins = {"weed": {"endpoint_url": "http://127.0.0.1:9", "verify": "required", "keys": keys}}
    [finding] = of("signatures", examine(settings(origins=origins, publish={"pipelines": "s3://built/x"})))
    assert "publish.pipelines" in finding.message
    assert not of("signatures", examine(settings(origins=origins)))
