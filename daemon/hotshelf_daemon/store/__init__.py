"""The shelf's bytes: `layout` opens and locks the store, `blobs` and `trees` are what is done in it, durably.

All functions block; callers run them on threads. A temporary directory is its own twin in tests.
"""

from hotshelf_daemon.store.layout import Layout, Room

__all__ = ["Layout", "Room"]
