"""At start: the index and the disk are made to agree, whatever the last daemon died of."""

from hotshelf_daemon.recover.start import Recovered, recover

__all__ = ["Recovered", "recover"]
