"""Where bytes come from: the port, its twins, its decorators, and the directory that finds the one for a source."""

from hotshelf_daemon.origin.directory import Directory
from hotshelf_daemon.origin.memory import MemoryOrigin
from hotshelf_daemon.origin.mirrored import Mirrored, itself
from hotshelf_daemon.origin.outgoing import Outgoing, digest_and_crc64nvme, opened
from hotshelf_daemon.origin.port import CANNOT_SPLICE, Body, Changed, Corrupted, Misanswered, Origin, SplicedBody
from hotshelf_daemon.origin.retrying import Retrying, again, delay_s
from hotshelf_daemon.origin.sending import ATTEMPTS, Sender
from hotshelf_daemon.origin.upload import Upload, upload_to

__all__ = [
    "ATTEMPTS", "CANNOT_SPLICE", "Body", "Changed",
    "Corrupted", "Directory", "MemoryOrigin", "Mirrored", "Misanswered", "Origin", "Outgoing", "Retrying",
    "Sender", "SplicedBody", "Upload", "again", "delay_s", "digest_and_crc64nvme", "itself", "opened", "upload_to",
]  # fmt: skip
