"""At start: the index and the disk are made to agree, whatever the last daemon died of."""

from hotshelf_daemon.recover.adopting import PATIENCE_BYTES, Adoption
from hotshelf_daemon.recover.start import Recovered, recover

__all__ = ["PATIENCE_BYTES", "Adoption", "Recovered", "recover"]
