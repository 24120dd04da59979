"""Readers of bundles for the fuzz: what may be accepted of a mutated archive or document, and what that must be."""

from __future__ import annotations

import atexit
import os
import pathlib
import shutil
import tempfile
from functools import cache

from hotshelf.archive import unpack
from hotshelf_shared.bundle import Bundle, BundleName
from tests import objects
from tests.client.archives import archive_of
from tests.objects import Digest

KEY = b"k" * 32
ARCHIVE = archive_of({"ab/kernel.so": objects.noise("so", 200), "fxgraph/k/graph": b'{"a": 1}' * 30, "empty": b""})
DOCUMENT = Bundle(BundleName("h100-cuda12.8", "9f2c"), Digest.of(b"a"), 1_000, 61_001, 1_700_000_000).signed(KEY).canonical()


@cache
def _base() -> pathlib.Path:
    """In memory where possible: what is unpacked 20,000 times need not go to a disk."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="hs-fuzz-", dir="/dev/shm" if os.access("/dev/shm", os.W_OK) else None))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    (folder / "place").mkdir()
    return folder


def archive(data: bytes) -> None:
    """Under the digest that it has: unpacked whole, as it says itself, or not at all, and never anywhere else."""
    base = _base()
    fd = os.memfd_create("archive")
    try:
        os.write(fd, data)
        tree = unpack(f"/proc/self/fd/{fd}", base / "place" / "new", digest=Digest.of(data))
        assert objects.manifest_of(objects.read(base / "place" / "new")) == tree
        shutil.rmtree(base / "place" / "new")
    finally:
        os.close(fd)
        assert [os.listdir(base), os.listdir(base / "place")] == [["place"], []]


def document(data: bytes) -> None:
    """Only the one that the daemon signed is signed."""
    assert not Bundle.parse(data).is_signed_with(KEY) or data == DOCUMENT
