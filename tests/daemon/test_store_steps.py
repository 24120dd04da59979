"""Each step of writing to the store may fail: nothing half-made is seen or left lying, and the next attempt succeeds."""

from __future__ import annotations

import contextlib
import errno
import os
import pathlib
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from hotshelf_daemon.store import Layout, durable, pipelines, trees
from hotshelf_daemon.store import blobs as files
from hotshelf_shared.built import Built
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, InsufficientSpace, IntegrityError
from hotshelf_shared.recipe import Recipe
from tests import objects

TREE = objects.manifest_of(objects.model("steps", unet=300, text_encoder=200, vae=200))
RECIPE = Recipe(base=Digest.of(b"base"))
BUILT = Built(RECIPE, TREE, uid=7, created_at=1.0, hotshelf="0")
#: What changes a disk. Taking away what a failure left is done by these too, after the one that failed.
CALLS = ("mkdir", "symlink", "fsync", "rename", "pwrite", "fchmod", "posix_fallocate", "open")


@pytest.fixture
def layout(tmp_path: pathlib.Path) -> Iterator[Layout]:
    layout = Layout(str(tmp_path / "store"), group=None)
    yield layout
    layout.close()


class Libc:
    """The C library, whose renameat2 goes through `step` first."""

    def __init__(self, real: Any, step: Callable[[], None]) -> None:
        self._real, self._step = real, step

    def renameat2(self, *args: Any) -> int:
        try:
            self._step()
        except OSError as error:
            durable.ctypes.set_errno(error.errno)
            return -1
        return int(self._real.renameat2(*args))


@contextlib.contextmanager
def failing(number: int, code: int = errno.EIO) -> Iterator[list[int]]:
    """The `number`-th call to the disk fails; the list counts them."""
    seen = [0]

    def step() -> None:
        seen[0] += 1
        if seen[0] == number:
            raise OSError(code, os.strerror(code))

    def spoiled(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **more: Any) -> Any:
            step()
            return real(*args, **more)

        return call

    with pytest.MonkeyPatch.context() as patch:
        for name in CALLS:
            patch.setattr(os, name, spoiled(getattr(os, name)))
        patch.setattr(durable, "_libc", Libc(durable._libc, step))
        yield seen


def lay_out(layout: Layout) -> None:
    trees.lay_out(layout, TREE)


def put_pipeline(layout: Layout) -> None:
    pipelines.put(layout, BUILT)


def write_record(layout: Layout) -> None:
    trees.write_json(layout, "refs", "a" * 64, {"a": 1})


SEEN: dict[Callable[[Layout], None], Callable[[Layout], bool]] = {
    lay_out: lambda layout: trees.is_laid_out(layout, TREE) and trees.manifest(layout, f"{TREE.revision.hex}.json") == TREE,
    put_pipeline: lambda layout: pipelines.read(layout, RECIPE.key) == BUILT,
    write_record: lambda layout: trees.record(layout, "refs", f"{'a' * 64}.json") == {"a": 1},
}


@pytest.mark.parametrize("deed", SEEN, ids=lambda deed: deed.__name__)
@pytest.mark.parametrize("twice", [False, True], ids=["new", "again"])
def test_a_step_that_fails_leaves_nothing_and_the_next_attempt_succeeds(
    layout: Layout, tmp_path: pathlib.Path, deed: Callable[[Layout], None], twice: bool
) -> None:
    if twice:
        deed(layout)
    with failing(0) as steps:
        deed(layout)
    last = steps[0]
    assert last >= 3
    descriptors = open_below(tmp_path)
    for number in range(1, last + 1):
        if not twice:
            forget(layout)
        with failing(number), pytest.raises((OSError, HotshelfError)):
            deed(layout)
        assert os.listdir(layout["ingest"]) == [], f"step {number} left something"
        assert open_below(tmp_path) == descriptors, f"step {number} left a descriptor open"
        deed(layout)
        assert SEEN[deed](layout), f"after step {number}"


def open_below(folder: pathlib.Path) -> int:
    """How many descriptors this process has of what lies there, or did."""
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            count += os.readlink(f"/proc/self/fd/{name}").startswith(str(folder))
    return count


def forget(layout: Layout) -> None:
    trees.remove(layout, TREE.revision)
    pipelines.remove(layout, RECIPE.key)
    for folder, name in (("manifests", TREE.revision.hex), ("refs", "a" * 64)):
        trees.drop_record(layout, folder, f"{name}.json")


def test_a_commit_that_fails_takes_back_what_it_placed_and_nothing_else(layout: Layout) -> None:
    contents = {f"ingest-{number}": b"%d" % number for number in range(3)}
    digests = {name: Digest.of(data) for name, data in contents.items()}
    stranger = digests["ingest-2"]
    write(layout.shard(stranger.hex), stranger.hex, contents["ingest-2"])
    for name, data in contents.items():
        write(layout["ingest"], name, data)
    with failing(2), pytest.raises(HotshelfError):
        files.publish(layout, digests)
    assert [digest for _, _, digest in files.strangers(layout)] == [stranger]
    assert files.is_right(layout, stranger)


def write(folder: int, name: str, data: bytes) -> None:
    fd = durable.create(folder, name, len(data))
    durable.pwrite_all(fd, memoryview(data), 0)
    os.close(fd)


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.EINVAL])
def test_a_file_system_without_renaming_anew_is_served_too(layout: Layout, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(durable, "_libc", Libc(durable._libc, refuse))
    for name in ("one", "two"):
        os.close(durable.create(layout["ingest"], name, 1))
    durable.rename_new(layout["ingest"], "one", layout["refs"], "x")
    with pytest.raises(FileExistsError):
        durable.rename_new(layout["ingest"], "two", layout["refs"], "x")
    assert os.listdir(layout["refs"]) == ["x"]


@pytest.mark.parametrize("code", [errno.EOPNOTSUPP, errno.EINVAL])
def test_a_file_system_that_cannot_allocate_is_served_too(layout: Layout, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "posix_fallocate", lambda *_: (_ for _ in ()).throw(OSError(code, os.strerror(code))))
    fd = durable.create(layout["ingest"], "a", 1_000)
    assert os.fstat(fd).st_size == 1_000
    os.close(fd)


@pytest.mark.parametrize(
    ("code", "kind", "said"),
    [
        (errno.ENOSPC, InsufficientSpace, "Free room"),
        (errno.EDQUOT, InsufficientSpace, "Free room"),
        (errno.EROFS, HotshelfError, "not writable"),
        (errno.EACCES, HotshelfError, "not writable"),
        (errno.EMFILE, HotshelfError, "ulimit"),
        (errno.EIO, HotshelfError, "doctor"),
    ],
)
def test_an_error_of_the_disk_says_what_to_do(code: int, kind: type[HotshelfError], said: str) -> None:
    with pytest.raises(kind) as caught, durable.disk_errors("writing"):
        raise OSError(code, os.strerror(code))
    assert said in caught.value.hint


def test_what_cannot_be_read_is_no_blob_no_record_and_no_tree(layout: Layout) -> None:
    digest = Digest.of(b"x")
    shard = layout.shard(digest.hex)
    os.mkdir(digest.hex, dir_fd=shard)
    with pytest.raises(IntegrityError):
        files.open_blob(layout, digest)
    assert files.size_of(layout, digest) is None
    assert files.is_right(layout, digest) is False
    assert trees.manifest(layout, "none.json") is None
    assert trees.record(layout, "refs", "none.json") == {}
    os.mkdir("folder.json", dir_fd=layout["refs"])
    assert trees.record(layout, "refs", "folder.json") == {}


@pytest.mark.parametrize("code", [errno.EMFILE, errno.ENFILE, errno.ENOMEM])
def test_having_no_descriptor_left_condemns_no_blob(layout: Layout, code: int) -> None:
    with failing(1, code), pytest.raises(HotshelfError):
        files.is_right(layout, Digest.of(b"x"))
