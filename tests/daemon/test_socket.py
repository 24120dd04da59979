"""The socket: who is let in, what a worker that is let in still may not do, and that it cannot be stolen or choked."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import re
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import pytest

from hotshelf_daemon.server import ROUTES
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.bundling import share
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import granted, refused, rows, tree_of
from tests.daemon.peers import Somebody
from tests.daemon.workers import Worker, recipe_of
from tests.daemon_process import Daemon, call
from tests.servers.child import StartFailed
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

#: The store's group, and uids of two workers. Nobody of this machine has these.
GROUP, WORKER, OTHER = 61_000, 61_001, 61_002
AS_WORKER = f"import os, sys\nos.setgroups([{GROUP}]); os.setgid({WORKER}); os.setuid({WORKER})\n"


@pytest.fixture(scope="module")
def open_place() -> Iterator[pathlib.Path]:
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hs-open-"))
    os.chmod(folder, 0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module")
def kept_team(seaweedfs: SeaweedFS, wire: Recorder, open_place: pathlib.Path) -> Iterator[Daemon]:
    """A daemon whose socket and store belong to a group. Everybody can reach the socket's folder."""
    root = open_place / "root"
    objects.write(root / "m", {"a.safetensors": b"a" * 300})
    objects.write(open_place / "private", {"secret.safetensors": b"only the daemon may read this"})
    os.chmod(open_place / "private", 0o700)
    (root / "link").symlink_to(open_place / "private")
    (root / "m2").mkdir()
    (root / "m2" / "link.safetensors").symlink_to(open_place / "private" / "secret.safetensors")
    with Daemon(
        open_place / "team",
        origins={"weed": seaweedfs.settings(BUCKET, endpoint_url=wire.endpoint_url)},
        socket_group=str(GROUP),
        roots=[str(root)],
    ) as daemon:
        os.chmod(daemon.socket.parent, 0o755)
        yield daemon


@pytest.fixture
def team(kept_team: Daemon) -> Daemon:
    return kept_team


def worker(daemon: Daemon, uid: int = WORKER) -> Somebody:
    """A process of the group, as a pod's fsGroup makes one: by a supplementary group."""
    return Somebody(daemon.socket, uid=uid, gid=uid, groups=[GROUP])


# ---- who is let in


def test_the_socket_is_for_its_owner_and_group_in_a_folder_of_their_own(
    make_daemon: MakeDaemon, tmp_path: pathlib.Path
) -> None:
    daemon = make_daemon(start=False)
    daemon.socket = daemon.socket.parent / "made" / "s"
    daemon.start()
    assert stat.S_IMODE(os.lstat(daemon.socket).st_mode) == 0o660
    assert stat.S_IMODE(os.lstat(daemon.socket.parent).st_mode) == 0o750
    assert stat.S_IMODE(os.lstat(daemon.store).st_mode) & 0o007 == 0
    assert stat.S_IMODE(os.lstat(daemon.store / "index").st_mode) & 0o777 == 0o750
    daemon.terminate()
    assert not daemon.socket.exists()


@pytest.mark.root
def test_the_group_owns_socket_and_store(team: Daemon) -> None:
    assert os.lstat(team.socket).st_gid == GROUP
    seen = os.lstat(team.store)
    assert (seen.st_gid, stat.S_IMODE(seen.st_mode)) == (GROUP, 0o2750)
    assert os.lstat(team.store / "index" / "index.db").st_gid == GROUP


@pytest.mark.root
@pytest.mark.parametrize(
    ("gid", "groups"), [(GROUP, ()), (WORKER, (GROUP,)), (WORKER, (1, 2, GROUP, 3))], ids=["own", "fsGroup", "one of many"]
)
def test_a_member_of_the_group_is_let_in(team: Daemon, gid: int, groups: tuple[int, ...]) -> None:
    assert Somebody(team.socket, uid=WORKER, gid=gid, groups=groups).ask("GET", "/v1/status").status == 200


@pytest.mark.root
def test_a_member_of_very_many_groups_is_let_in(team: Daemon) -> None:
    groups = [*range(100_000, 100_900), GROUP]
    assert Somebody(team.socket, uid=WORKER, gid=WORKER, groups=groups).ask("GET", "/v1/status").status == 200


@pytest.mark.root
def test_a_uid_outside_the_group_cannot_even_connect(team: Daemon) -> None:
    assert Somebody(team.socket, uid=OTHER, gid=OTHER).ask("GET", "/v1/status").body == "PermissionError"


@pytest.mark.root
def test_a_uid_outside_the_group_gets_403_on_every_call(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(socket_mode="0666", socket_group=str(GROUP))
    os.chmod(daemon.socket.parent, 0o755)
    stranger = Somebody(daemon.socket, uid=OTHER, gid=OTHER, groups=[OTHER])
    asked = [(route.method, re.sub(r"\{[^}]*\}", "x", route.path), None) for route in ROUTES]
    asked.append(("GET", "/v1/openapi.json", None))
    for request, reply in zip(asked, stranger.ask_all(*asked), strict=True):
        if request[0] == "HEAD":  # its answer has no body
            assert (reply.status, reply.headers["x-hotshelf-code"]) == (403, "access_denied")
        else:
            assert "61002" in refused(reply, "access_denied")["detail"]


@pytest.mark.root
def test_listed_uids_and_gids_are_let_in_instead(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(socket_mode="0666", socket_uids=[WORKER], socket_gids=[GROUP], admin_uids=[0, OTHER])
    os.chmod(daemon.socket.parent, 0o755)

    def status(uid: int, gid: int) -> int:
        return Somebody(daemon.socket, uid=uid, gid=gid).ask("POST", "/v1/collect", {"dry_run": True}).status

    assert (status(WORKER, WORKER), status(61_005, GROUP), status(OTHER, OTHER), status(61_005, 61_005)) == (
        403, 403, 200, 403,
    )  # fmt: skip
    assert Somebody(daemon.socket, uid=WORKER, gid=WORKER).ask("GET", "/v1/status").status == 200


# ---- a worker that is let in


@pytest.mark.root
def test_a_worker_acquires_and_reads_what_it_was_given(team: Daemon, put: Put) -> None:
    lease = granted(worker(team).ask("POST", "/v1/leases", {"source": put({"a.safetensors": b"a" * 300})}))
    assert rows(team, "SELECT uid FROM v_leases WHERE id = ?", lease["id"]) == [{"uid": WORKER}]
    path = f"{team.store}/{lease['path']}/a.safetensors"
    assert output_of(AS_WORKER + "sys.stdout.write(open(sys.argv[1]).read())", path) == "a" * 300
    assert "PermissionError" in output_of(AS_WORKER + "open(sys.argv[1], 'a')", path)


@pytest.mark.root
def test_a_worker_cannot_make_the_daemon_read_what_it_may_not(team: Daemon, open_place: pathlib.Path) -> None:
    mallory, files = worker(team), (
        f"file://{open_place}/private", f"file://{open_place}/private/secret.safetensors", f"file://{open_place}/root/link",
        f"file://{open_place}/root/link/secret.safetensors", f"file://{open_place}/root/m2", "file:///etc/shadow", "file:///",
        f"file://{team.store}/index", "file:///proc/self/environ", f"file://{open_place}/root/../private",
    )  # fmt: skip
    for reply in mallory.ask_all(*(("POST", "/v1/leases", {"source": source}) for source in files)):
        assert reply.body["code"] in ("access_denied", "invalid_request")
        assert "only the daemon" not in json.dumps(reply.body)
    assert granted(mallory.ask("POST", "/v1/leases", {"source": f"file://{open_place}/root/m"}))


@pytest.mark.root
def test_a_worker_cannot_touch_another_s_lease(team: Daemon, put: Put) -> None:
    client = "victimclient"
    source = put({"a.safetensors": b"b" * 300})
    lease = granted(worker(team).ask("POST", "/v1/leases", {"source": source, "client": client}))
    mallory = worker(team, OTHER)
    refused(mallory.ask("DELETE", f"/v1/leases/{lease['id']}"), "access_denied")
    body = {"client": client, "ids": [lease["id"]], "seen": lease["grant"]}
    assert granted(mallory.ask("POST", "/v1/leases/renew", body))["kept"] == []
    granted(mallory.ask("POST", "/v1/leases/renew", {"client": client, "ids": [], "seen": 1 << 60}))
    refused(mallory.ask("DELETE", f"/v1/snapshots/{lease['revision']}"), "access_denied")
    assert rows(team, "SELECT id FROM v_leases WHERE id = ?", lease["id"])
    assert granted(worker(team).ask("POST", "/v1/leases/renew", body))["kept"] == [lease["id"]]
    assert worker(team).ask("DELETE", f"/v1/leases/{lease['id']}").status == 204


@pytest.mark.root
def test_a_worker_that_dies_takes_no_other_uid_s_lease_along(team: Daemon, put: Put) -> None:
    """Its keeper's connection ends with a name that another uid uses as well."""
    source, client = put({"a.safetensors": b"c" * 300}), "sharedname01"
    lease = granted(worker(team).ask("POST", "/v1/leases", {"source": source, "client": client}))
    granted(worker(team, OTHER).ask("POST", "/v1/leases/renew", {"client": client, "ids": [], "seen": 0}))
    other = granted(worker(team, OTHER).ask("POST", "/v1/leases", {"source": source, "client": "x" * 8, "hold_s": 0.6}))
    wait_until(lambda: not rows(team, "SELECT id FROM v_leases WHERE id = ?", other["id"]))  # the janitor has been round
    assert rows(team, "SELECT id FROM v_leases WHERE id = ?", lease["id"])


@pytest.mark.root
def test_a_worker_cannot_use_an_admin_verb(team: Daemon, put: Put) -> None:
    source = put({"a.safetensors": b"d" * 300})
    mallory = worker(team)
    lease = granted(mallory.ask("POST", "/v1/leases", {"source": source}))
    pinned = quote(source, safe="")
    assert mallory.ask("PUT", f"/v1/pins/{pinned}").status == 200
    asked = [(route.method, route.path) for route in ROUTES if route.admin]
    assert {("DELETE", "/v1/snapshots/{target:.+}"), ("DELETE", "/v1/pins/{target:.+}"), ("POST", "/v1/verify"),
            ("POST", "/v1/collect"), ("POST", "/v1/rollback")} <= set(asked)  # fmt: skip
    targets = [(method, path.replace("{target:.+}", pinned), None) for method, path in asked]
    for reply in mallory.ask_all(*targets):
        refused(reply, "access_denied")
    assert tree_of(team, lease)
    assert rows(team, "SELECT target FROM v_pins WHERE target = ?", source)


@pytest.mark.root
def test_a_worker_cannot_write_to_the_store(team: Daemon) -> None:
    script = """
for name in ("", "index", "blobs", "blobs/sha256", "snapshots", "ingest", "refs", "trash"):
    try:
        open(os.path.join(sys.argv[1], name, "planted"), "w")
        print("wrote", name)
    except PermissionError:
        pass
"""
    assert output_of(AS_WORKER + script, str(team.store)) == ""


def output_of(script: str, *argv: str) -> str:
    done = subprocess.run([sys.executable, "-c", script, *argv], capture_output=True, text=True, timeout=30, check=False)
    return done.stdout + done.stderr


# ---- one daemon


def exit_code(daemon: Daemon) -> int:
    daemon.launch()
    return daemon.wait()


def test_a_second_daemon_on_the_same_store_is_refused_and_the_first_is_not_disturbed(
    shared: Daemon, make_daemon: MakeDaemon, put: Put
) -> None:
    tree = {"a.safetensors": b"a" * 200}
    source = put(tree)
    second = make_daemon("second", start=False, store=shared.store)
    assert exit_code(second) == 78
    assert f"pid {shared.pid}" in second.log_text
    assert "store" in second.log_text
    assert not second.socket.exists()
    assert tree_of(shared, granted(shared.acquire(source))) == tree


def test_a_second_daemon_on_the_same_socket_is_refused_and_the_first_is_not_disturbed(
    shared: Daemon, make_daemon: MakeDaemon
) -> None:
    second = make_daemon("second", start=False)
    mine, second.socket = second.socket, shared.socket
    before = os.lstat(shared.socket).st_ino
    assert exit_code(second) == 78
    assert str(shared.socket) in second.log_text
    assert os.lstat(shared.socket).st_ino == before
    assert granted(shared.call("GET", "/v1/status"))["pid"] == shared.pid
    second.socket = mine


def test_the_socket_of_a_daemon_that_was_killed_is_taken_over(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon()
    daemon.kill9()
    assert daemon.socket.exists()
    daemon.start()
    assert daemon.call("GET", "/v1/health").status == 200


def test_what_is_no_socket_is_not_removed(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(start=False)
    daemon.socket.write_text("precious")
    assert exit_code(daemon) == 78
    assert daemon.socket.read_text() == "precious"


def test_a_socket_path_that_is_too_long_is_refused_by_its_name(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    daemon = make_daemon(start=False)
    daemon.socket = pathlib.Path("/tmp") / ("s" * 110)
    assert exit_code(daemon) == 78
    assert "107" in daemon.log_text
    assert "Traceback" not in daemon.log_text
    assert not daemon.store.exists()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"bugdet": "90%"}, "budget"),
        ({"budget": 1 << 60}, "budget"),
        ({"listen": "256.256.256.256:1"}, "listen"),
        ({"socket_group": "no-such-group"}, "socket_group"),
        ({"index": {"path": "/proc/nowhere/index.db"}}, "index.path"),
        ({"models": {"x": {"source": "hf://org/name", "pin": True}}, "roots": 3}, "roots"),
    ],
)
def test_a_setting_that_cannot_be_used_is_refused_by_its_name(
    make_daemon: MakeDaemon, settings: dict[str, Any], named: str
) -> None:
    daemon = make_daemon(start=False, **settings)
    assert exit_code(daemon) == 78
    assert named in daemon.log_text
    assert "Traceback" not in daemon.log_text


def test_a_store_that_is_no_folder_is_refused(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_text("x")
    daemon = make_daemon(start=False, store=tmp_path / "file")
    assert exit_code(daemon) == 78
    assert "PIPELINE_STORE" in daemon.log_text


def test_a_store_that_everybody_may_write_is_refused(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    (tmp_path / "open").mkdir()
    os.chmod(tmp_path / "open", 0o777)
    daemon = make_daemon(start=False, store=tmp_path / "open")
    assert exit_code(daemon) == 78
    assert "writable by everyone" in daemon.log_text


def test_a_lock_that_is_a_link_is_not_followed(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "victim").write_text("precious")
    (tmp_path / "store" / ".lock").symlink_to(tmp_path / "victim")
    daemon = make_daemon(start=False, store=tmp_path / "store")
    assert exit_code(daemon) == 78
    assert (tmp_path / "victim").read_text() == "precious"


@pytest.mark.root
def test_a_store_that_this_user_may_not_write_is_refused(make_daemon: MakeDaemon, open_place: pathlib.Path) -> None:
    folder = open_place / "closed"
    folder.mkdir(mode=0o755)
    prefix = ("setpriv", f"--reuid={WORKER}", f"--regid={WORKER}", "--clear-groups")
    for store in (folder, folder / "below"):
        daemon = Daemon(open_place / f"home-{store.name}", prefix=prefix, store=store)
        try:
            os.chmod(daemon.socket.parent, 0o777)
            (open_place / f"home-{store.name}").mkdir()
            os.chmod(open_place / f"home-{store.name}", 0o777)
            assert exit_code(daemon) == 78
            assert "PIPELINE_STORE" in daemon.log_text
            assert "Traceback" not in daemon.log_text
        finally:
            daemon.close()


# ---- requests


def raw(daemon: Daemon, data: bytes, *, answers: int = 1) -> bytes:
    """What comes back to these very bytes: so many answers, or less when the daemon closes or says nothing."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2)
        connection.connect(str(daemon.socket))
        got = b""
        with contextlib.suppress(TimeoutError, ConnectionResetError, BrokenPipeError):
            connection.sendall(data)
            while got.count(b"HTTP/1.") < answers or not got.endswith((b"}", b"\n", b"^")):
                if not (piece := connection.recv(65_536)):
                    break
                got += piece
        return got


def head(*lines: str, start: str = "POST /v1/leases HTTP/1.1") -> bytes:
    return "\r\n".join((start, "Host: localhost", *lines, "", "")).encode("latin-1")


@pytest.mark.parametrize(
    "data",
    [
        head("Content-Length: 2", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        head("Content-Length: 2", "Content-Length: 3") + b"{}x",
        head("Content-Length: -1"),
        head("Content-Length: 1e3"),
        head("Transfer-Encoding: chunked") + b"zz\r\n{}\r\n0\r\n\r\n",
        head("Transfer-Encoding: gzip, identity") + b"{}",
        head("X: " + "y" * 9_000),
        head(*(f"X{n}: {'y' * 100}" for n in range(2_000))),
        head("Bad Header: x"),
        head(": x"),
        head(start="POST /" + "a" * 9_000 + " HTTP/1.1"),
        head(start="GET /v1/status HTTP/9.9"),
        head(start="nonsense"),
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n\r\n",
    ],
    ids=lambda data: repr(data[:60]),
)
def test_what_is_no_clean_request_is_refused_and_never_a_500(shared: Daemon, data: bytes) -> None:
    answer = raw(shared, data)
    assert answer == b"" or answer.split(b" ", 2)[1].startswith(b"4"), answer[:200]
    assert shared.call("GET", "/v1/health").status == 200


def test_a_second_request_hidden_in_a_body_is_not_carried_out(shared: Daemon) -> None:
    hidden = head(start="POST /v1/collect HTTP/1.1")
    lengths = (f"Content-Length: {len(hidden)}", "Transfer-Encoding: chunked")
    answer = raw(shared, head(*lengths) + b"0\r\n\r\n" + hidden, answers=2)
    assert answer.count(b"HTTP/1.") == 1
    assert b" 400 " in answer


def test_a_body_beyond_its_limit_is_413(shared: Daemon) -> None:
    body = json.dumps({"source": "s3://weights/a", "allow_patterns": ["x" * 1_000] * 70}).encode()
    assert len(body) > 64 << 10
    refused(shared.call("POST", "/v1/leases", body), "too_large")
    refused(shared.call("POST", "/v1/leases/renew", b" " * (600 << 10)), "too_large")
    refused(shared.call("POST", "/v1/collect", b" " * (65 << 10)), "too_large")


@pytest.mark.parametrize(
    ("method", "target"),
    [("GET", "/"), ("GET", "/v1"), ("GET", "/v2/status"), ("PUT", "/v1/leases"), ("GET", "/v1/leases"), ("TRACE", "/v1/status"),
     ("GET", "/v1/%2e%2e/%2e%2e/etc/passwd"), ("GET", "/metrics")],
)  # fmt: skip
def test_what_is_no_call_is_a_problem_too(shared: Daemon, method: str, target: str) -> None:
    refused(shared.call(method, target), "not_found")


@pytest.mark.parametrize(
    "target", ["sha256:12", "sha256:" + "0" * 64, "..%2F..%2Fetc", "no-such-name", "%00", "s3%3A%2F%2Fb%2F..%2Fx"]
)
def test_a_snapshot_that_is_none_is_a_problem(shared: Daemon, target: str) -> None:
    for method in ("GET", "DELETE"):
        reply = shared.call(method, f"/v1/snapshots/{target}")
        assert reply.status in (400, 404), reply
        assert reply.headers["content-type"] == "application/problem+json"


def test_openapi_describes_exactly_the_calls_there_are(shared: Daemon) -> None:
    described = granted(shared.call("GET", "/v1/openapi.json"))
    operations = {(method.upper(), path) for path, methods in described["paths"].items() for method in methods}
    served = {(route.method, route.path.replace("{target:.+}", "{target}")) for route in ROUTES}
    assert operations == served
    assert described["openapi"].startswith("3.1")
    names = [operation["operationId"] for methods in described["paths"].values() for operation in methods.values()]
    assert len(names) == len(set(names))
    for method, path in operations:
        reply = shared.call(method, re.sub(r"\{\w+\}", "no-such-name", path))
        assert reply.status != 405
        assert not (reply.status == 404 and "is no call of /v1" in (reply.body or {}).get("detail", "")), (method, path)


def test_openapi_s_schemas_fit_what_is_answered(shared: Daemon, put: Put) -> None:
    schemas = granted(shared.call("GET", "/v1/openapi.json"))["components"]["schemas"]
    lease = granted(shared.acquire(put({"a.safetensors": b"a" * 200})))
    assert set(schemas["Lease"]["required"]) <= set(lease)
    worker = Worker(shared)
    pipeline = worker.build(recipe_of("openapi"), {"a.safetensors": b"a" * 200, "model_index.json": b"{}"})
    assert set(schemas["Pipeline"]["required"]) == set(schemas["Pipeline"]["properties"]) == set(pipeline)
    assert set(schemas["Recipe"]["properties"]) == set(pipeline["recipe"])
    bundle = share(worker, b"a" * 200, "/v1/bundles/openapi/graph")
    assert set(schemas["Bundle"]["required"]) == set(schemas["Bundle"]["properties"]) == set(bundle)
    (listed,) = granted(worker.ask("GET", "/v1/bundles/openapi"))["bundles"]
    assert set(schemas["Bundles"]["properties"]["bundles"]["items"]["required"]) == set(listed)
    problem = refused(shared.acquire("no-such-name"), "not_found")
    assert set(schemas["Problem"]["required"]) <= set(problem)
    assert problem["code"] in schemas["Problem"]["properties"]["code"]["enum"]


def test_openapi_says_how_bytes_are_handed_in(shared: Daemon) -> None:
    paths = granted(shared.call("GET", "/v1/openapi.json"))["paths"]
    put = paths["/v1/blobs/{digest}"]["put"]
    assert set(put["responses"]) == {"201", "204", "default"}
    assert list(put["requestBody"]["content"]) == ["application/octet-stream"]
    assert "X-Hotshelf-Size" in paths["/v1/blobs/{digest}"]["head"]["responses"]["200"]["headers"]
    bind = paths["/v1/pipelines/{key}"]["put"]
    assert set(bind["responses"]) == {"200", "201", "default"}
    assert bind["requestBody"]["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Bind"}


def test_a_connection_may_carry_many_requests(shared: Daemon) -> None:
    twice = head(start="GET /v1/health HTTP/1.1") * 2
    assert raw(shared, twice, answers=2).count(b"HTTP/1.1 200") == 2


# ---- the probes' listener


def test_probes_answer_and_nothing_else_does(shared: Daemon) -> None:
    assert shared.get_http("/livez").status == shared.get_http("/readyz").status == 200
    assert "hotshelf_build_info" in shared.get_http("/metrics").body
    for target in ("/v1/status", "/v1/leases", "/", "/metrics/../v1/status"):
        assert shared.get_http(target).status == 404


def test_a_daemon_without_a_listener_serves_its_socket_all_the_same(make_daemon: MakeDaemon) -> None:
    daemon = make_daemon(listen="")
    assert call(daemon.socket, "GET", "/v1/health").status == 200


def test_a_listener_that_is_taken_is_refused_by_its_name(make_daemon: MakeDaemon, shared: Daemon) -> None:
    daemon = make_daemon("second", start=False, listen=shared.settings["listen"])
    assert exit_code(daemon) == 78
    assert "listen" in daemon.log_text
    assert not daemon.socket.exists()
    with pytest.raises(StartFailed):
        daemon.start()
