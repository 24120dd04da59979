"""The use cases, a verb each: `Desk` acquires, `Leasing` keeps leases, `Keeping` is the operator's, `Freshness` nobody's."""

from hotshelf_daemon.acquire.desk import Desk
from hotshelf_daemon.acquire.freshness import Freshness
from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.keeping import Keeping
from hotshelf_daemon.acquire.leasing import Leasing, Peer
from hotshelf_daemon.acquire.names import Names, Want
from hotshelf_daemon.acquire.prepare import Preparer

__all__ = ["Desk", "Freshness", "Gauge", "Keeping", "Leasing", "Names", "Peer", "Preparer", "Want"]
