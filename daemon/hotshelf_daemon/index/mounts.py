"""Where SQLite's write-ahead log is not safe."""

from __future__ import annotations

import os

from hotshelf_shared.errors import BadConfiguration
from hotshelf_shared.mounts import file_system_of, is_network

__all__ = ["file_system_of", "refuse_network_file_system"]


def refuse_network_file_system(path: str) -> None:
    """WAL needs shared memory that network file systems do not give. Decided from mountinfo, before any pragma."""
    kind = file_system_of(os.path.dirname(path))
    if is_network(kind):
        raise BadConfiguration(
            f"the index {path} lies on {kind}, where SQLite's write-ahead log is unsafe",
            hint="Set index.path to a file on a local disk; it is rebuilt from the store when lost.",
        )
