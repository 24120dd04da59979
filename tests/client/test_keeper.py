"""Leases live while the worker does: what the daemon is told, when, and what the worker is told when they do not."""

from __future__ import annotations

import logging
import threading

import pytest

from hotshelf.client import Client
from hotshelf.keeper import Keeper
from hotshelf.transport import Reply

from .fakes import PATIENCE_S, FakeDaemon, UnixServer


def thread_of(client: Client) -> threading.Thread:
    thread = client.keeper._thread
    assert thread is not None
    return thread


def test_the_first_renewal_comes_at_once_and_names_everything(client: Client, daemon: FakeDaemon) -> None:
    with client.acquire("sdxl") as lease:
        renewal = daemon.renewals.get(timeout=PATIENCE_S)
    assert renewal == {"client": client.keeper.client, "ids": [lease.id], "seen": 1}


def test_renewals_go_on_and_declare_the_whole_set(client: Client, daemon: FakeDaemon) -> None:
    daemon.expires_s = 0.15
    with client.acquire("sdxl") as one, client.acquire("style") as two:
        while (renewal := daemon.renewals.get(timeout=PATIENCE_S))["seen"] < 2:
            pass
        for _ in range(3):
            assert daemon.renewals.get(timeout=PATIENCE_S) == renewal
    assert sorted(renewal["ids"]) == sorted([one.id, two.id])


def test_a_lease_with_less_time_than_the_others_is_renewed_sooner(client: Client, daemon: FakeDaemon) -> None:
    with client.acquire("sdxl"):
        daemon.renewals.get(timeout=PATIENCE_S)
        daemon.expires_s = 0.15
        with client.acquire("style") as style:
            assert style.id in daemon.renewals.get(timeout=PATIENCE_S)["ids"]


def test_renewals_share_one_connection(client: Client, daemon: FakeDaemon, server: UnixServer) -> None:
    daemon.expires_s = 0.06
    with client.acquire("sdxl"):
        for _ in range(5):
            daemon.renewals.get(timeout=PATIENCE_S)
        assert len(server.connections) == 2  # the acquire's and the keeper's


def test_the_connection_ends_with_the_last_lease(client: Client, daemon: FakeDaemon, server: UnixServer) -> None:
    lease = client.acquire("sdxl")
    daemon.renewals.get(timeout=PATIENCE_S)
    keeper = thread_of(client)
    lease.release()
    keeper.join(PATIENCE_S)
    assert not keeper.is_alive()
    for _ in range(3):  # the acquire's, the release's and the keeper's connection
        server.closed.get(timeout=PATIENCE_S)


def test_a_lease_after_the_last_is_kept_too(client: Client, daemon: FakeDaemon) -> None:
    daemon.expires_s = 0.3  # the old keeper may still be there, and renews when it is due
    for _ in range(3):
        with client.acquire("sdxl") as lease:
            while lease.id not in daemon.renewals.get(timeout=PATIENCE_S)["ids"]:
                pass


def test_short_leases_in_a_row_share_a_keeper(server: UnixServer, daemon: FakeDaemon) -> None:
    client = Client(server.path)
    client._keepers[""] = Keeper(client.transport, linger_s=0.5)
    client.acquire("sdxl").release()
    keeper = thread_of(client)
    with client.acquire("sdxl"):
        assert thread_of(client) is keeper
    keeper.join(PATIENCE_S)
    assert not keeper.is_alive()


def test_after_a_restart_everything_is_declared_again(
    client: Client, daemon: FakeDaemon, server: UnixServer, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.expires_s = 0.15
    with client.acquire("sdxl") as lease:
        daemon.renewals.get(timeout=PATIENCE_S)
        server.stop()
        while not daemon.renewals.empty():
            daemon.renewals.get()
        server.start()
        assert daemon.renewals.get(timeout=PATIENCE_S)["ids"] == [lease.id]
        assert not lease.lost


def test_a_lease_the_daemon_no_longer_knows_is_reported_once(
    client: Client, daemon: FakeDaemon, caplog: pytest.LogCaptureFixture
) -> None:
    daemon.expires_s = 0.15
    with client.acquire("sdxl") as lost, client.acquire("style") as kept, caplog.at_level(logging.WARNING, "hotshelf"):
        daemon.leases.pop(lost.id)
        while daemon.renewals.get(timeout=PATIENCE_S)["ids"] != [kept.id]:
            pass
        daemon.renewals.get(timeout=PATIENCE_S)
        assert (lost.lost, kept.lost) == (True, False)
        assert "lost" in repr(lost)
        reports = [record.getMessage() for record in caplog.records if lost.id in record.getMessage()]
        assert len(reports) == 1
        assert "acquire it again" in reports[0]
    assert daemon.freed.get(timeout=PATIENCE_S) == kept.id  # and nothing is asked about the lost one
    assert daemon.freed.empty()


@pytest.mark.parametrize("answer", [{}, {"kept": 3, "expires_s": 60}, {"kept": [], "expires_s": "x"}, [], None])
def test_a_senseless_answer_loses_no_lease(
    client: Client, daemon: FakeDaemon, answer: object, caplog: pytest.LogCaptureFixture
) -> None:
    asked = threading.Semaphore(0)

    def renew(_: object) -> Reply:
        asked.release()
        return Reply(answer)

    daemon.looks["POST", "/v1/leases/renew"] = renew
    with client.acquire("sdxl") as lease:
        for _ in range(2):
            assert asked.acquire(timeout=PATIENCE_S)
        assert not lease.lost
    assert sum("cannot renew" in record.getMessage() for record in caplog.records) == 1


def test_leaving_declares_that_nothing_is_held(client: Client, daemon: FakeDaemon) -> None:
    lease = client.acquire("sdxl")
    while daemon.renewals.get(timeout=PATIENCE_S)["ids"] != [lease.id]:
        pass
    client.keeper.leave()
    assert daemon.renewals.get(timeout=PATIENCE_S) == {"client": client.keeper.client, "ids": [], "seen": 1}


def test_many_threads_acquire_and_release_through_one_client(client: Client, daemon: FakeDaemon) -> None:
    daemon.expires_s = 0.15
    failures: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for _ in range(10):
                with client.acquire(name) as lease:
                    assert (lease.path / "model.safetensors").read_bytes() == name.encode()
                    assert not lease.lost
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"model{n}",)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failures == []
    assert daemon.leases == {}
