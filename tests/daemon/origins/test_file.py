"""Folders as an origin give away nothing that lies outside their root, whatever is planted inside."""

from __future__ import annotations

import os
import pathlib
import subprocess
import sys

import pytest

from hotshelf_daemon.origin.file import FileOrigin, root_for
from hotshelf_shared.errors import AccessDenied, HotshelfError
from tests import objects


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    objects.write(tmp_path / "root" / "m", {"a": b"inside"})
    objects.write(tmp_path / "outside", {"secret": b"not for you", "d/e": b"nor this"})
    return tmp_path / "root"


def key(path: pathlib.Path) -> str:
    return str(path).lstrip("/")


def refused(origin: FileOrigin, at: pathlib.Path) -> None:
    for ask in (origin.head, lambda k: origin.read(k, 100)):
        with pytest.raises(AccessDenied):
            ask(key(at))


def test_a_file_outside_the_root_is_denied(root: pathlib.Path) -> None:
    refused(FileOrigin(str(root)), root.parent / "outside" / "secret")


def test_a_file_beside_a_root_of_which_it_has_the_name_s_beginning_is_denied(root: pathlib.Path) -> None:
    objects.write(root.parent / "root2", {"a": b"x"})
    refused(FileOrigin(str(root)), root.parent / "root2" / "a")


def test_a_link_to_a_file_outside_is_denied(root: pathlib.Path) -> None:
    (root / "m" / "link").symlink_to(root.parent / "outside" / "secret")
    refused(FileOrigin(str(root)), root / "m" / "link")
    with pytest.raises(AccessDenied):
        list(FileOrigin(str(root)).list(key(root / "m")))


def test_a_link_to_a_folder_outside_is_denied(root: pathlib.Path) -> None:
    (root / "link").symlink_to(root.parent / "outside")
    refused(FileOrigin(str(root)), root / "link" / "secret")
    with pytest.raises(AccessDenied):
        list(FileOrigin(str(root)).list(key(root / "link")))


def test_a_link_that_stays_inside_is_followed(root: pathlib.Path) -> None:
    (root / "m" / "link").symlink_to("a")
    assert FileOrigin(str(root)).read(key(root / "m" / "link"), 100) == b"inside"


def test_a_folder_swapped_for_a_link_after_the_listing_is_denied(root: pathlib.Path) -> None:
    origin = FileOrigin(str(root))
    (seen,) = origin.list(key(root / "m"))
    os.rename(root / "m", root / "old")
    (root / "m").symlink_to(root.parent / "outside")
    os.rename(root.parent / "outside" / "secret", root.parent / "outside" / "a")
    with pytest.raises(AccessDenied):
        origin.open(seen, 0, seen.size).__enter__()


def test_what_is_no_file_is_not_there(root: pathlib.Path) -> None:
    os.mkfifo(root / "m" / "fifo")
    origin = FileOrigin(str(root))
    assert origin.head(key(root / "m" / "fifo")) is None
    assert [obj.key for obj in origin.list(key(root / "m"))] == [key(root / "m" / "a")]


def test_a_file_rewritten_while_it_is_read_is_refused(root: pathlib.Path) -> None:
    origin = FileOrigin(str(root))
    seen = origin.head(key(root / "m" / "a"))
    assert seen is not None
    with pytest.raises(HotshelfError, match="changed"), origin.open(seen, 0, seen.size):
        (root / "m" / "a").write_bytes(b"INSIDE")


def test_without_roots_no_file_may_be_named_and_the_refusal_tells_nothing(root: pathlib.Path) -> None:
    answers = set()
    for path in (root / "m" / "a", root / "m" / "none", pathlib.Path("/etc/passwd")):
        with pytest.raises(AccessDenied) as refusal:
            root_for(str(path), [])
        answers.add(refusal.value.message.replace(str(path), "PATH"))
    assert len(answers) == 1


def test_a_path_is_served_by_the_root_above_it(root: pathlib.Path) -> None:
    roots = [str(root.parent / "outside"), f"{root}/"]
    assert root_for(f"{root}/m/a", roots) == f"{root}/"
    with pytest.raises(AccessDenied):
        root_for(f"{root}2/m/a", roots)


@pytest.mark.root
def test_a_folder_that_the_daemon_may_not_read_is_denied_and_never_left_out(open_folder: pathlib.Path) -> None:
    """A snapshot that silently lacks a part would be worse than an error."""
    objects.write(open_folder / "m", {"a": b"1", "closed/b": b"2"})
    os.chmod(open_folder / "m" / "closed", 0o700)
    script = (
        "import os, sys\n"
        "from hotshelf_daemon.origin.file import FileOrigin\n"
        "from hotshelf_shared.errors import AccessDenied\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "try:\n"
        "    print([o.key for o in FileOrigin(sys.argv[1]).list(sys.argv[1].lstrip('/') + '/m')])\n"
        "except AccessDenied:\n"
        "    print('denied')\n"
    )
    argv = [sys.executable, "-c", script, str(open_folder)]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=True)
    assert (done.stdout.strip(), done.stderr) == ("denied", "")
