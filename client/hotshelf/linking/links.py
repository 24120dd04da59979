"""What has to change in a folder so that it has the links that it should, and the change.

Ours is a link that leads below hub/ or names/ of this shelf and is called as we would call it: those are added, turned and
removed. Anything else stays as it is, and is named when it is where a link of ours should be.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum

from hotshelf.linking.views import called
from hotshelf_shared.errors import AccessDenied, InvalidRequest

_REFUSED = (errno.EACCES, errno.EPERM, errno.EROFS)


class Deed(Enum):
    #: Where nothing is, a link or a file of ours.
    ADD = "added"
    #: What leads elsewhere than it should, or says something else.
    TURN = "turned"
    #: Nothing on the shelf is called so any more.
    REMOVE = "removed"
    #: Somebody else's is there, or in the way to it.
    LEAVE = "left"


@dataclass(frozen=True, slots=True)
class Change:
    """`target` is where the link at `path` is to lead, or has led; of a file, what it is to say."""

    deed: Deed
    path: str
    target: str


def is_ours(path: str, target: str | None, store: str) -> bool:
    """Whether a link at `path` to `target` is one that we made, for this shelf."""
    if target is None or not target.startswith(f"{store}/"):
        return False
    root, *rest = target.removeprefix(f"{store}/").split("/", 3)
    if root == "hub":
        return [path] == rest
    if root != "names" or len(rest) < 2:
        return False
    name, file = rest[1], "/".join(rest[2:])
    tails = {f"{name}/{file}", *(called(f"{name}{number}", file) for number in ("", "_2", "_3"))} if file else {name}
    return any(path.endswith(f"/{tail}") for tail in tails)


def decide(links: Mapping[str, str], found: Mapping[str, str | None], store: str) -> list[Change]:
    """`found` is where the links lead that there are, by their paths, and None for what else is in the way."""
    changes = []
    for path, target in links.items():
        if path not in found:
            changes.append(Change(Deed.ADD, path, target))
        elif found[path] != target:
            changes.append(Change(Deed.TURN if is_ours(path, found[path], store) else Deed.LEAVE, path, target))
    stale = {path: target for path, target in found.items() if path not in links and is_ours(path, target, store)}
    changes += [Change(Deed.REMOVE, path, target or "") for path, target in stale.items()]
    return sorted(changes, key=lambda change: change.path)


def decide_file(path: str, text: str, found: str | None) -> list[Change]:
    """For a file that begins with a line by which it is known to be ours. `found` is what it says, None for no file."""
    if found == text:
        return []
    first = text.partition("\n")[0]
    deed = Deed.ADD if found is None else Deed.TURN if found.partition("\n")[0] == first else Deed.LEAVE
    return [Change(deed, path, text)]


@dataclass(frozen=True, slots=True)
class Directory:
    """A folder to be filled. Links lie in its `folders` (one that is `""` is itself), or in a folder of a name in those."""

    path: str
    folders: Sequence[str]

    def links(self, wanted: Mapping[str, str]) -> dict[str, str | None]:
        """For `decide`. A folder may be a link to where there is room; what is right in it and is a link is not entered."""
        found: dict[str, str | None] = {}
        with _usable(self.path):
            for folder in self.folders:
                for entry in _entries(os.path.join(self.path, folder)):
                    inner = _entries(entry.path) if entry.is_dir(follow_symlinks=False) else []
                    for one in (entry, *inner):
                        if one.is_symlink():
                            found[os.path.relpath(one.path, self.path)] = os.readlink(one.path)
        found.update({path: None for path in wanted if path not in found and self._is_in_the_way(path)})
        return found

    def _is_in_the_way(self, path: str) -> bool:
        above = os.path.dirname(path)
        parent = os.path.join(self.path, above)
        if os.path.lexists(parent) and (not os.path.isdir(parent) or (above not in self.folders and os.path.islink(parent))):
            return True
        return os.path.lexists(os.path.join(self.path, path))

    def text(self, path: str) -> str | None:
        """None where nothing is; what is no text of ours for certain is empty."""
        at = os.path.join(self.path, path)
        if not os.path.lexists(at):
            return None
        if os.path.islink(at) or not os.path.isfile(at):
            return ""
        with _usable(self.path), open(at, encoding="utf-8", errors="replace") as file:
            return file.read(1 << 20)

    def change(self, changes: Sequence[Change]) -> None:
        """Raises AccessDenied or InvalidRequest when it cannot be done."""
        with _usable(self.path):
            os.makedirs(self.path, exist_ok=True)
            for change in changes:
                self._carry_out(change, os.path.join(self.path, change.path))

    def _carry_out(self, change: Change, at: str) -> None:
        if change.deed is Deed.REMOVE:
            os.unlink(at)
            if os.path.dirname(change.path) not in self.folders:
                with contextlib.suppress(OSError):  # it holds others
                    os.rmdir(os.path.dirname(at))
        elif change.deed is not Deed.LEAVE:
            os.makedirs(os.path.dirname(at), exist_ok=True)
            make = _link if os.path.isabs(change.target) else _write
            if change.deed is Deed.ADD:
                make(at, change.target)  # what has appeared there meanwhile stays
            else:
                _replace(at, change.target, make)


def _link(at: str, target: str) -> None:
    os.symlink(target, at)


def _write(at: str, text: str) -> None:
    with open(at, "x", encoding="utf-8") as file:
        file.write(text)


def _replace(at: str, target: str, make: Callable[[str, str], None]) -> None:
    unseen = os.path.join(os.path.dirname(at), f".{secrets.token_hex(8)}")
    try:
        make(unseen, target)
        os.rename(unseen, at)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(unseen)
        raise


def _entries(folder: str) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


@contextmanager
def _usable(directory: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        message = f"{error.filename or directory}: {error.strerror or error}"
        if error.errno in _REFUSED:
            raise AccessDenied(message, hint="Name a folder that this user may write.") from error
        raise InvalidRequest(message, hint="Name a folder that can hold links, and run this again.") from error
