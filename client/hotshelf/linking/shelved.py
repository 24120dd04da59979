"""What shows on a shelf to whoever holds no lease, read off its folders: no daemon is asked, a read-only mount is enough."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

from hotshelf.linking.kinds import kind_of, read_header
from hotshelf_shared.errors import AccessDenied, NotFound

SAFETENSORS = (".safetensors", ".sft")


@dataclass(frozen=True, slots=True)
class Shelved:
    """One configured name. `path` stays the same whatever it stands for; `files` are relative to it, and `kinds` says what
    those right in it are, as far as their headers tell."""

    name: str
    path: str
    is_lora: bool
    files: tuple[str, ...]
    kinds: Mapping[str, str] = field(default_factory=dict)


def names(store: str) -> list[Shelved]:
    """In the order of their names. Raises NotFound when no shelf is there, AccessDenied."""
    with _readable(store):
        found = [
            _look(entry.name, entry.path, is_lora=kind == "loras")
            for kind in ("loras", "models")
            for entry in _entries(os.path.join(store, "names"), kind)
            if entry.is_dir()
        ]
    return sorted(found, key=lambda one: one.name)


def repositories(store: str) -> list[str]:
    """Folders below hub/ that name a commit. Raises NotFound when no shelf is there, AccessDenied."""
    with _readable(store):
        hub = os.path.join(store, "hub")
        folders = (name for name in os.listdir(hub) if name.startswith("models--"))
        return sorted(name for name in folders if os.path.isdir(os.path.join(hub, name, "snapshots")))


def _entries(folder: str, kind: str) -> list[os.DirEntry[str]]:
    """A kind without names has no folder."""
    with os.scandir(folder) as kinds:
        if not any(entry.name == kind for entry in kinds):
            return []
    with os.scandir(os.path.join(folder, kind)) as entries:
        return list(entries)


def _look(name: str, path: str, *, is_lora: bool) -> Shelved:
    files = [os.path.relpath(os.path.join(at, file), path) for at, _, names in os.walk(path) for file in names]
    kinds: dict[str, str] = {}
    for file in files:
        if "/" not in file and file.endswith(SAFETENSORS):
            with suppress(FileNotFoundError):  # the name has turned, or gone, since: its link is right, or goes next time
                if (header := read_header(os.path.join(path, file))) and (kind := kind_of(header)):
                    kinds[file] = kind
    return Shelved(name, path, is_lora, tuple(sorted(files)), kinds)


@contextmanager
def _readable(store: str) -> Iterator[None]:
    try:
        yield
    except PermissionError as error:
        hint = "Give this user the group of the shelf (socket_group)."
        raise AccessDenied(f"the shelf {store} cannot be read: {error.filename}", hint=hint) from error
    except (FileNotFoundError, NotADirectoryError) as error:
        hint = "Say with --store or HOTSHELF_STORE where it is mounted here; a hotshelfd of this version must have run on it."
        raise NotFound(f"there is no shelf at {store}: {error.filename} is missing", hint=hint) from error
