"""A fork is safe: the child starts over, and the daemon still notices when the parent dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

from hotshelf.transport import Reply

from .fakes import PATIENCE_S, FakeDaemon, UnixServer

PRELUDE = """
import os, sys, threading, traceback
from hotshelf.client import Client
client = Client(sys.argv[1])

def held():
    return client.status()["leases"]

def in_child(work):
    pid = os.fork()
    if pid == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


def run(script: str, server: UnixServer, daemon: FakeDaemon) -> str:
    daemon.looks["GET", "/v1/status"] = lambda _: Reply({"leases": dict(daemon.leases)})
    command = [sys.executable, "-W", "error", "-c", PRELUDE + script, str(server.path)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True) as script_process:
        try:
            printed, complaints = script_process.communicate(timeout=60)
        except subprocess.TimeoutExpired:
            os.killpg(script_process.pid, signal.SIGKILL)  # its children too: one of them is what hangs
            raise
    assert (script_process.returncode, complaints) == (0, "")
    return printed


def test_a_lease_inherited_by_the_child_is_inert_there(server: UnixServer, daemon: FakeDaemon) -> None:
    script = """
lease = client.acquire("sdxl")
def work():
    assert lease.path.is_dir()
    lease.release()
    assert lease.id in held()
in_child(work)
assert lease.id in held()
lease.release()
assert held() == {}
"""
    run(script, server, daemon)


def test_a_detached_lease_inherited_by_the_child_is_inert_there(server: UnixServer, daemon: FakeDaemon) -> None:
    script = """
lease = client.acquire("sdxl", detached=True)
in_child(lease.release)
assert lease.id in held()
"""
    run(script, server, daemon)


def test_the_child_has_a_client_id_and_a_keeper_of_its_own(server: UnixServer, daemon: FakeDaemon) -> None:
    script = """
lease = client.acquire("sdxl")
print(client.keeper.client)
sys.stdout.flush()
def work():
    with client.acquire("style") as own:
        assert client.keeper._thread.is_alive()
        print(client.keeper.client)
        sys.stdout.flush()
        assert held()[own.id] == client.keeper.client
        assert held()[lease.id] != client.keeper.client
in_child(work)
"""
    parent, child = run(script, server, daemon).split()
    assert parent != child
    declared = {}
    while len(declared) < 2:
        renewal = daemon.renewals.get(timeout=PATIENCE_S)
        declared.setdefault(renewal["client"], renewal["ids"])
    assert set(declared) == {parent, child}
    assert len(declared[child]) == 1


def test_the_parents_death_ends_its_connections_although_a_child_lives(server: UnixServer, daemon: FakeDaemon) -> None:
    script = """
lease = client.acquire("sdxl")
client.health()  # answered once the keeper has its connection
child = os.fork()
if child == 0:
    os.close(1), os.close(2)  # so that `run` does not wait for the child
    threading.Event().wait(60)
    os._exit(0)
print(child)
sys.stdout.flush()
os._exit(0)
"""
    daemon.looks["GET", "/v1/health"] = lambda _: Reply(daemon.renewals.get(timeout=PATIENCE_S))
    child = int(run(script, server, daemon))
    try:
        for _ in range(3):  # of the acquire, the keeper and the look
            server.closed.get(timeout=PATIENCE_S)
        assert len(server.connections) == 3
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_fork_amid_busy_threads_does_not_hang_the_child(server: UnixServer, daemon: FakeDaemon) -> None:
    script = """
stop = threading.Event()
def busy():
    while not stop.is_set():
        client.acquire("sdxl").release()
threads = [threading.Thread(target=busy) for _ in range(3)]
for thread in threads:
    thread.start()
def work():
    client.acquire("style", timeout=20).release()
for _ in range(25):
    in_child(work)
stop.set()
for thread in threads:
    thread.join()
"""
    run(script, server, daemon)


def test_leaving_the_process_frees_what_it_held(server: UnixServer, daemon: FakeDaemon) -> None:
    run('lease = client.acquire("sdxl")', server, daemon)
    while daemon.renewals.get(timeout=PATIENCE_S)["ids"]:
        pass
