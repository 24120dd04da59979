"""Values of hotshelf_shared for property tests."""

from __future__ import annotations

import unicodedata

from hypothesis import strategies as st

from hotshelf_shared.digest import Digest
from hotshelf_shared.manifest import FileEntry, Manifest

#: Text that can be stored in a file's name: no NUL, backslash, slash, surrogates; in NFC, so that distinct means distinct.
letters = st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\\/\0")
names = (
    st.text(letters, min_size=1, max_size=12)
    .map(lambda text: unicodedata.normalize("NFC", text))
    .filter(lambda text: text not in ("", ".", "..") and "/" not in text)
)
digests = st.binary(min_size=32, max_size=32).map(lambda raw: Digest.from_hex(raw.hex()))
entries = st.builds(FileEntry, digests, st.integers(0, 1 << 50))


@st.composite
def file_trees(draw: st.DrawFn) -> dict[str, FileEntry]:
    """Safe, distinct paths that do not overlap, in no particular order."""
    tree: dict[str, FileEntry] = {}
    for parts in draw(st.lists(st.lists(names, min_size=1, max_size=4), max_size=8)):
        path = "/".join(parts)
        folders = {"/".join(parts[:depth]) for depth in range(1, len(parts))}
        if path not in tree and not folders & tree.keys() and not any(old.startswith(f"{path}/") for old in tree):
            tree[path] = draw(entries)
    return tree


manifests = file_trees().map(Manifest.of)
