"""Where bytes come from: the port, its twins, its decorators, and the directory that finds the one for a source."""

from hotshelf_daemon.origin.directory import Directory
from hotshelf_daemon.origin.memory import MemoryOrigin
from hotshelf_daemon.origin.port import Body, Changed, Corrupted, Misanswered, Origin
from hotshelf_daemon.origin.retrying import Retrying, delay_s
from hotshelf_daemon.origin.upload import Upload, upload_to

__all__ = [
    "Body", "Changed", "Corrupted", "Directory", "MemoryOrigin", "Misanswered", "Origin", "Retrying", "Upload", "delay_s",
    "upload_to",
]  # fmt: skip
