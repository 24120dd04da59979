"""What the kubelet is told of a daemon that does not serve yet."""

from __future__ import annotations

import pathlib

from tests.daemon.conftest import MakeDaemon
from tests.daemon_process import Daemon
from tests.waiting import wait_until


def test_a_daemon_that_does_not_have_its_store_yet_is_alive_and_not_ready(
    make_daemon: MakeDaemon, tmp_path: pathlib.Path
) -> None:
    """It waits for the store's lock, as it would work through a store whose index was lost."""
    first = make_daemon()
    second = Daemon(tmp_path / "second", store=first.store, idle_exit_s=120)
    try:
        second.launch()
        wait_until(lambda: answers(second, "/livez") == 200)
        assert (answers(second, "/readyz"), answers(second, "/metrics")) == (503, 503)
        first.terminate()
        wait_until(lambda: answers(second, "/readyz") == 200)
        assert answers(second, "/metrics") == 200
    finally:
        second.close()


def test_a_daemon_without_its_store_yet_ends_at_once_when_asked(make_daemon: MakeDaemon, tmp_path: pathlib.Path) -> None:
    first = make_daemon()
    second = Daemon(tmp_path / "second", store=first.store, idle_exit_s=120)
    try:
        second.launch()
        wait_until(lambda: answers(second, "/livez") == 200)
        assert second.terminate(timeout_s=10) == 0
    finally:
        second.close()


def answers(daemon: Daemon, target: str) -> int:
    try:
        return daemon.get_http(target).status
    except OSError:
        return 0
