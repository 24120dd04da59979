"""Rows 1 to 36: whatever an origin answers, the caller gets the right bytes or a typed error; nothing wrong is published."""

from __future__ import annotations

import json
import pathlib
import ssl
from collections.abc import Iterator

import pytest

from tests import objects
from tests.daemon.looking import granted, refused, rows, tree_of
from tests.daemon_process import Daemon
from tests.faults.invariants import visible_wrongs
from tests.faults.origin_cases import CASES, RANGED, RESUMED, SINGLE, Case, refuse
from tests.faults.scripted_origin import ScriptedOrigin
from tests.servers.certificates import certify

SEGMENT = 64 << 10
SIZES = {SINGLE: SEGMENT // 2, RANGED: 3 * SEGMENT + 1, RESUMED: 3 * SEGMENT + 1}
SECRET = "a-canary-of-a-secret"
KEY_ID = "shelf-key"
PLAIN, TLS = "plain", "tls"
#: Short, so that stalls and drips take no time; every wait of the daemon towards an origin is one of these.
FETCH = {
    "segment_bytes": SEGMENT, "connections": 2, "attempts": 2, "idle_timeout_s": 0.3, "connect_timeout_s": 1,
    "floor_rate": 1_000,
}  # fmt: skip


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    return certify(tmp_path_factory.mktemp("tls") / "pem")


@pytest.fixture(scope="module")
def origin(request: pytest.FixtureRequest, certificate: pathlib.Path) -> Iterator[ScriptedOrigin]:
    context = None
    if request.param == TLS:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
    with ScriptedOrigin(tls=context) as server:
        yield server


def settings(endpoint_url: str, **more: object) -> dict[str, object]:
    return {
        "endpoint_url": endpoint_url, "region": "us-east-1", "addressing_style": "path", "access_key_id": KEY_ID,
        "secret_access_key": SECRET, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def daemon(origin: ScriptedOrigin, certificate: pathlib.Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    origins = {"scripted": settings(origin.endpoint_url, ca_bundle=str(certificate))}
    with Daemon(tmp_path_factory.mktemp("cases"), origins=origins, fetch=FETCH, revalidate_s=3_600) as running:
        yield running


def cases() -> Iterator[object]:
    """Every shape over plain HTTP, and ranges over TLS too: their bytes take another way."""
    for case in CASES:
        for over, shape in [(PLAIN, shape) for shape in case.shapes] + [(TLS, RANGED)] * (RANGED in case.shapes):
            name = f"{case.row}-{case.name}-{shape}" + f"-{over}" * (over != PLAIN)
            yield pytest.param(over, case, shape, id=name.replace(" ", "-"))


def interrupt(daemon: Daemon, origin: ScriptedOrigin, source: str, folder: str) -> None:
    """A first download that got through one segment and then met an origin that was busy."""
    beyond = {"when": lambda ask: ask.range is not None and ask.range[0] >= SEGMENT, "prefix": folder}
    origin.misdeed(refuse(500, "InternalError"), **beyond)
    refused(daemon.acquire(source), "origin_unavailable")
    assert rows(daemon, "SELECT * FROM v_transfers WHERE bytes_done > 0 AND key LIKE ?", f"{folder}%"), "nothing to resume"
    origin.heal()


@pytest.mark.parametrize(("origin", "case", "shape"), list(cases()), indirect=["origin"])
def test_no_answer_publishes_wrong_bytes_or_leaves_the_caller_without_a_reason(
    daemon: Daemon, origin: ScriptedOrigin, case: Case, shape: str, prefix: str
) -> None:
    tree = {"a.safetensors": objects.safetensors(prefix, SIZES[shape])}
    folder, source = put(origin, prefix, tree, published=case.published)
    if shape == RESUMED:
        interrupt(daemon, origin, source, folder)
    before = len(origin.asked_for(folder, case.on))
    origin.misdeed(case.spoil, on=case.on, prefix=folder, times=case.times)
    reply = daemon.acquire(source, timeout_s=20)
    asks = len(origin.asked_for(folder, case.on)) - before
    origin.heal()
    assert list(visible_wrongs(daemon.store)) == []
    if case.code is None:
        assert tree_of(daemon, granted(reply)) == tree
    else:
        problem = refused(reply, case.code)
        assert case.says.lower() in f"{problem['detail']} {problem['hint']}".lower(), problem
        assert case.retryable in (None, problem["retryable"]), problem
        assert SECRET not in json.dumps(problem)
        assert case.most_asks is None or asks <= case.most_asks
        assert rows(daemon, "SELECT * FROM v_refs WHERE source = ?", source) == []
        assert rows(daemon, "SELECT * FROM v_leases WHERE source = ?", source) == []
        assert tree_of(daemon, granted(daemon.acquire(source))) == tree
    assert rows(daemon, "SELECT * FROM v_transfers WHERE key LIKE ?", f"{folder}%") == []
    assert '"defect"' not in daemon.log_text
    assert SECRET not in daemon.log_text


def put(origin: ScriptedOrigin, prefix: str, tree: objects.Tree, *, published: bool) -> tuple[str, str]:
    """The keys' common beginning that a case may spoil, and the source: one object, or a folder with a manifest."""
    if not published:
        origin.objects |= {f"{prefix}/{path}": data for path, data in tree.items()}
        return f"{prefix}/a", f"s3://weights/{prefix}/a.safetensors"
    origin.objects |= {f"{prefix}/{path}": data for path, data in objects.published(tree).items()}
    return f"{prefix}/blobs", f"s3://weights/{prefix}"


def test_every_case_belongs_to_a_row_of_origin_or_network() -> None:
    assert {case.row for case in CASES} <= set(range(1, 37))
