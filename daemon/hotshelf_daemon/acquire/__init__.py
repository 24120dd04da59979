"""The use cases, a verb each: `Desk` acquires, `Leasing` keeps leases, `Keeping` is the operator's, `Freshness` nobody's.

`HandIns` takes bytes from workers, `Binder` makes pipelines of them, `Pipelines` says who may have which; `BundleBinder` and
`Bundles` do so for compile caches. `Refreshing` takes what an origin has now, `Turning` goes back to what it had.
`Explaining` says why a source is here or is not. `Repositories` are what clients of the Hugging Face Hub ask for.
"""

from hotshelf_daemon.acquire.binding import Binder
from hotshelf_daemon.acquire.bundles import Bundles, published_bundles
from hotshelf_daemon.acquire.bundling import BundleBinder
from hotshelf_daemon.acquire.desk import Desk
from hotshelf_daemon.acquire.explaining import Explaining
from hotshelf_daemon.acquire.freshness import Freshness
from hotshelf_daemon.acquire.gauge import Gauge
from hotshelf_daemon.acquire.handing import HandIns
from hotshelf_daemon.acquire.keeping import Keeping
from hotshelf_daemon.acquire.leasing import Leasing, Peer
from hotshelf_daemon.acquire.names import Names, Want
from hotshelf_daemon.acquire.pipelines import Pipelines, published_pipelines
from hotshelf_daemon.acquire.prepare import Preparer
from hotshelf_daemon.acquire.publishing import BundleOutbox, PipelineOutbox, Publisher
from hotshelf_daemon.acquire.refreshing import Refreshing
from hotshelf_daemon.acquire.repositories import HubFile, Repositories, Repository
from hotshelf_daemon.acquire.turning import Turning

__all__ = [
    "Binder", "BundleBinder", "BundleOutbox", "Bundles", "Desk", "Explaining", "Freshness", "Gauge", "HandIns", "HubFile",
    "Keeping", "Leasing", "Names", "Peer", "PipelineOutbox", "Pipelines", "Preparer", "Publisher", "Refreshing",
    "Repositories", "Repository", "Turning", "Want", "published_bundles", "published_pipelines",
]  # fmt: skip
