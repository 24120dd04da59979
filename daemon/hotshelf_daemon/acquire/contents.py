"""What lies in a tree's files, looked at before the tree is visible: no JSON that names code, no broken or abusive header."""

from __future__ import annotations

import os

from hotshelf_daemon import policy
from hotshelf_daemon.policy import Policy
from hotshelf_daemon.store import Layout
from hotshelf_daemon.store import blobs as files
from hotshelf_shared.manifest import Manifest


def check_contents(layout: Layout, tree: Manifest, rules: Policy) -> None:
    """Raises UnsafeContent or IntegrityError naming the file, FileNotFoundError for a blob that is gone. Reads the disk."""
    for path, entry in tree.items():
        if policy.is_document(path, entry.size):
            policy.check(path, files.read(layout, entry.digest, policy.MAX_DOCUMENT_BYTES + 1), rules)
        elif policy.is_tensors(path):
            fd = files.open_blob(layout, entry.digest)
            try:
                policy.check_tensors(path, fd, entry.size)
            finally:
                os.close(fd)
