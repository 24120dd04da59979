"""A compile cache's folder as one file, and back again: `pack` and `unpack`."""

from hotshelf.archive.form import LIMITS, Limits
from hotshelf.archive.packing import pack
from hotshelf.archive.unpacking import unpack

__all__ = ["LIMITS", "Limits", "pack", "unpack"]
