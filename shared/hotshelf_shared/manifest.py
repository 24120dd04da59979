"""A tree of files as data: path → (digest, size).

Invariant: a `Manifest` holds only paths that are safe to create below a directory, in NFC-distinct, non-overlapping
form, so whoever lays one out needs no further check. Its revision is the digest of its canonical JSON: the same files
have the same revision on every machine.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import HotshelfError, IntegrityError, InvalidRequest, TooLarge

MAX_FILES = 50_000
MAX_PATH_BYTES = 1_024
MAX_NAME_BYTES = 255
MAX_MANIFEST_BYTES = 8 << 20
MAX_FILE_BYTES = 1 << 50
#: As many of JSON's marks as no manifest of MAX_FILES has: one brace and two commas a file, and names may hold some too.
#: Anybody may have written it, and a parser that is fed millions of lists keeps everything else from running for seconds.
MAX_MARKS = {b"{": 4 * MAX_FILES, b"[": 4 * MAX_FILES, b",": 8 * MAX_FILES}
FORMAT_VERSION = 1
_HALF = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class FileEntry:
    """One file of a tree; `size` in bytes."""

    digest: Digest
    size: int

    @classmethod
    def parse(cls, value: Any, path: str) -> Self:
        if not isinstance(value, dict) or set(value) != {"digest", "size"}:
            raise IntegrityError(f"the manifest's entry for {path!r} is not {{digest, size}}")
        size = value["size"]
        if not isinstance(size, int) or isinstance(size, bool) or not 0 <= size <= MAX_FILE_BYTES:
            raise IntegrityError(f"the manifest's entry for {path!r} has no sensible size")
        try:
            return cls(Digest.parse(value["digest"]), size)
        except InvalidRequest as error:
            raise IntegrityError(f"the manifest's entry for {path!r}: {error.message}") from error


def check_path(path: object) -> str:
    """`path` if it can be created below a directory and nowhere else. Raises InvalidRequest."""
    if not isinstance(path, str) or not path:
        raise InvalidRequest("a path is empty or not text")
    shown = repr(path[:80])
    try:
        raw = path.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequest(f"the path {shown} is not valid Unicode") from error
    if len(raw) > MAX_PATH_BYTES:
        raise InvalidRequest(f"the path {shown}… is over {MAX_PATH_BYTES} bytes")
    if "\0" in path or "\\" in path:
        raise InvalidRequest(f"the path {shown} holds a NUL or a backslash")
    for part in path.split("/"):
        if part in ("", ".", ".."):
            raise InvalidRequest(f"the path {shown} is absolute or has an empty, '.' or '..' part")
        if len(part.encode()) > MAX_NAME_BYTES:
            raise InvalidRequest(f"the path {shown} has a name over {MAX_NAME_BYTES} bytes")
    return path


def check_paths(paths: Iterable[str]) -> None:
    """Refuses trees that cannot be laid out, or would be laid out differently on another file system."""
    seen: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        check_path(path)
        folded = unicodedata.normalize("NFC", path)
        if folded in seen:
            raise InvalidRequest(f"the paths {seen[folded]!r} and {path!r} collide in Unicode normal form")
        seen[folded] = path
        if len(seen) > MAX_FILES:
            raise TooLarge(f"more than {MAX_FILES:,} files", hint="Narrow it with allow_patterns.")
        folded_folder, folder = folded.rpartition("/")[0], path.rpartition("/")[0]
        while folded_folder and folders.get(folded_folder) != folder:
            if (other := folders.setdefault(folded_folder, folder)) != folder:
                raise InvalidRequest(f"the folders {other!r} and {folder!r} collide in Unicode normal form")
            folded_folder, folder = folded_folder.rpartition("/")[0], folder.rpartition("/")[0]
    if both := folders.keys() & seen.keys():
        raise InvalidRequest(f"the path {min(both)!r} is a file and a folder at once")


@dataclass(frozen=True)
class Manifest(Mapping[str, FileEntry]):
    """The files of one tree. Build it with `of` or `parse`; both check every path."""

    files: Mapping[str, FileEntry]

    @classmethod
    def of(cls, files: Mapping[str, FileEntry]) -> Self:
        """Raises InvalidRequest or TooLarge when the paths cannot be a tree."""
        check_paths(files)
        return cls({path: files[path] for path in sorted(files)})

    @classmethod
    def parse(cls, data: bytes) -> Self:
        """From canonical JSON. Raises IntegrityError (or TooLarge): a manifest is content, and this one is broken."""
        if len(data) > MAX_MANIFEST_BYTES:
            raise TooLarge(f"a manifest of {len(data):,} bytes; {MAX_MANIFEST_BYTES:,} is the most")
        refuse_millions(data, "the manifest", IntegrityError)
        return cls.of_json(parse_json(data, "the manifest", IntegrityError))

    @classmethod
    def of_json(cls, body: Any) -> Self:
        """As `parse`, from JSON that is read already."""
        if not isinstance(body, dict) or body.get("version") != FORMAT_VERSION or not isinstance(body.get("files"), dict):
            raise IntegrityError("the manifest is not {version: 1, files: {…}}")
        try:
            return cls.of({path: FileEntry.parse(value, path) for path, value in body["files"].items()})
        except InvalidRequest as error:
            raise IntegrityError(f"the manifest is unusable: {error.message}") from error

    def to_json(self) -> dict[str, Any]:
        files = {path: {"digest": str(e.digest), "size": e.size} for path, e in self.files.items()}
        return {"files": files, "version": FORMAT_VERSION}

    def canonical(self) -> bytes:
        """UTF-8 JSON, keys sorted, no white space: the bytes whose digest is the revision."""
        return json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    @cached_property
    def revision(self) -> Revision:
        return Revision.of(self.canonical())

    @cached_property
    def size(self) -> int:
        """Bytes of all files, as a reader sees them."""
        return sum(entry.size for entry in self.files.values())

    @cached_property
    def rows_json(self) -> str:
        """The JSON array of {path, digest, size} that leases carry; kept, since a warm hit is mostly this."""
        return json.dumps([{"path": path, "digest": e.digest, "size": e.size} for path, e in self.files.items()])

    def blobs(self) -> dict[Digest, int]:
        """Each distinct content once: digest → size."""
        return {entry.digest: entry.size for entry in self.files.values()}

    def only(self, wanted: Callable[[str], bool]) -> Manifest:
        return Manifest({path: entry for path, entry in self.files.items() if wanted(path)})

    def __getitem__(self, path: str) -> FileEntry:
        return self.files[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self.files)

    def __len__(self) -> int:
        return len(self.files)


def refuse_millions(data: bytes, what: str, error: type[HotshelfError]) -> None:
    """Raises `error` for JSON with far more values than a manifest, or what is sent around one, can have."""
    if any(data.count(mark) > most for mark, most in MAX_MARKS.items()):
        raise error(f"{what} holds far more values than {MAX_FILES:,} files need")


def parse_json(data: bytes | str, what: str, error: type[HotshelfError]) -> Any:
    """JSON in UTF-8 without duplicate keys, NaN, half characters or unbounded nesting; any of them raises `error`."""

    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        body = dict(pairs)
        if len(body) != len(pairs):
            raise ValueError("a key stands twice")
        return body

    def no_constants(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        text = data if isinstance(data, str) else data.decode()
        body = json.loads(text, object_pairs_hook=no_duplicates, parse_constant=no_constants)
        if _HALF.search(text):  # half of a surrogate pair is no text: whoever writes it down or hashes it would stumble
            json.dumps(body, ensure_ascii=False).encode()
        return body
    except (ValueError, RecursionError) as bad:
        raise error(f"{what} is not valid JSON: {str(bad)[:120] or 'nested too deeply'}") from bad
