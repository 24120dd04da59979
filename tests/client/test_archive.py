"""`pack` and `unpack`: a folder comes back as it was, and what an attacker packed comes to nothing."""

from __future__ import annotations

import errno
import json
import os
import pathlib
import random
import shutil
import socket
import stat
import unicodedata
import zlib
from collections.abc import Iterator
from contextlib import suppress

import pytest

from hotshelf.archive import LIMITS, Limits, pack, unpack
from hotshelf.archive.form import LENGTH_BYTES, MAGIC
from hotshelf_shared.errors import Conflict, HotshelfError, InsufficientSpace, IntegrityError, InvalidRequest, TooLarge
from tests import objects
from tests.faults.test_fuzz import mutated
from tests.objects import Digest, Tree

from .archives import TARS, archive_naming, archive_of, entry, manifest_text, put_together

CACHE: Tree = {
    "ab/kernel.so": objects.noise("so", 40_000),
    "ab/triton_poi_fused_" + "add_mul_" * 25 + ".cubin": b"c" * 3_000,
    "fxgraph/k/0/graph": b'{"a": 1}' * 2_000,
    "empty": b"",
    "z": b"last",
}


@pytest.fixture
def place(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """Where things are unpacked. Nothing may be left in it but what `unpack` returned as good."""
    folder = tmp_path / "place"
    folder.mkdir()
    yield folder
    assert not [name for name in os.listdir(folder) if name.startswith(".")]


def opened(data: bytes, place: pathlib.Path, *, limits: Limits = LIMITS, digest: str | None = None) -> Tree:
    """What the archive becomes below PLACE/new. Raises what `unpack` does."""
    archive = place.parent / "archive"
    archive.write_bytes(data)
    tree = unpack(archive, place / "new", digest=digest or Digest.of(data), limits=limits)
    found = objects.read(place / "new")
    assert objects.manifest_of(found) == tree
    return found


def refused(data: bytes, place: pathlib.Path, error: type[HotshelfError], **more: object) -> str:
    """Why; and nothing has been made anywhere near."""
    before = sorted(place.parent.rglob("*"))
    with pytest.raises(error) as why:
        opened(data, place, **more)  # type: ignore[arg-type]
    assert [path for path in sorted(place.parent.rglob("*")) if path.name != "archive"] == [
        path for path in before if path.name != "archive"
    ]
    assert why.value.hint
    return why.value.message


# ---- what is good


def test_a_folder_comes_back_as_it_was(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    objects.write(tmp_path / "cache", CACHE)
    packed = pack(tmp_path / "cache", tmp_path / "a")
    data = (tmp_path / "a").read_bytes()
    assert (packed.digest, packed.size) == (Digest.of(data), len(data))
    tree = unpack(tmp_path / "a", place / "new", digest=packed.digest)
    assert objects.read(place / "new") == CACHE
    assert tree == objects.manifest_of(CACHE)


def test_the_same_files_make_the_same_archive(tmp_path: pathlib.Path) -> None:
    shuffled = list(CACHE.items())
    random.Random(1).shuffle(shuffled)
    objects.write(tmp_path / "one", CACHE)
    objects.write(tmp_path / "two", dict(shuffled))
    os.utime(tmp_path / "two" / "z", (1, 1))
    (tmp_path / "two" / "z").chmod(0o4755)
    assert pack(tmp_path / "one", tmp_path / "a") == pack(tmp_path / "two", tmp_path / "b")
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes() == archive_of(CACHE)


def test_what_is_unpacked_is_private_and_runs_nothing(place: pathlib.Path) -> None:
    opened(archive_of(CACHE), place)
    modes = {path: stat.S_IMODE(path.lstat().st_mode) for path in (place / "new").rglob("*")}
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o700}
    assert {mode for path, mode in modes.items() if path.is_file()} == {0o600}
    assert stat.S_IMODE((place / "new").stat().st_mode) == 0o700


def test_a_folder_that_compresses_too_well_can_be_unpacked_all_the_same(tmp_path: pathlib.Path, place: pathlib.Path) -> None:
    objects.write(tmp_path / "cache", {"zeros": bytes(4 << 20)})
    packed = pack(tmp_path / "cache", tmp_path / "a")
    unpack(tmp_path / "a", place / "new", digest=packed.digest)
    assert (place / "new" / "zeros").read_bytes() == bytes(4 << 20)


def test_an_empty_folder_is_filled_and_anything_else_is_left_alone(place: pathlib.Path) -> None:
    new = place / "new"
    new.mkdir()
    assert opened(archive_of(CACHE), place) == CACHE
    refused(archive_of({"z": b"other"}), place, Conflict)
    assert objects.read(new) == CACHE
    shutil.rmtree(new)
    new.write_bytes(b"mine")
    refused(archive_of(CACHE), place, Conflict)
    assert new.read_bytes() == b"mine"
    new.unlink()
    (place.parent / "elsewhere").mkdir()
    new.symlink_to(place.parent / "elsewhere")
    refused(archive_of(CACHE), place, Conflict)
    assert os.listdir(place.parent / "elsewhere") == []


# ---- what cannot be packed


@pytest.mark.parametrize("kind", ["link", "link to a folder", "pipe", "socket"])
def test_what_is_neither_file_nor_folder_is_named(tmp_path: pathlib.Path, kind: str) -> None:
    folder = objects.write(tmp_path / "c", {"sub/a": b"1"})
    odd = folder / "sub" / "odd"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as one:
            one.bind(os.path.relpath(odd))
    else:
        odd.symlink_to("/tmp" if "folder" in kind else "a")
    with pytest.raises(InvalidRequest, match="sub/odd"):
        pack(folder, tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == ["c"]


def test_a_folder_without_files_or_with_too_many_or_too_deep_is_refused(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidRequest):
        pack(tmp_path / "empty", tmp_path / "a")
    objects.write(tmp_path / "deep", {"d/" * 33 + "a": b"1"})
    with pytest.raises(TooLarge):
        pack(tmp_path / "deep", tmp_path / "a")
    objects.write(tmp_path / "many", {str(number): b"1" for number in range(4)})
    with pytest.raises(TooLarge):
        pack(tmp_path / "many", tmp_path / "a", limits=Limits(files=3))
    with pytest.raises(InvalidRequest):
        pack(tmp_path / "nowhere", tmp_path / "a")
    assert sorted(os.listdir(tmp_path)) == ["deep", "empty", "many"]


def test_a_file_that_changes_while_it_is_packed_is_named(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = objects.write(tmp_path / "c", {"a": b"1", "b": b"2"})
    flushed = zlib.compressobj

    def change(level: int) -> object:
        (folder / "b").write_bytes(b"3")
        return flushed(level)

    monkeypatch.setattr("hotshelf.archive.packing.zlib.compressobj", change)
    with pytest.raises(IntegrityError, match="b changed"):
        pack(folder, tmp_path / "a")
    assert os.listdir(tmp_path) == ["c"]


# ---- what attackers pack


@pytest.mark.parametrize("what", TARS)
def test_no_tar_is_opened_whatever_is_in_it(what: str, place: pathlib.Path) -> None:
    assert "no archive of hotshelf" in refused(TARS[what], place, IntegrityError)


NAMES = {
    "..": ["../evil"],
    ".. within": ["a/../../evil"],
    "absolute": ["/tmp/hotshelf-evil"],
    "NUL": ["a\0b"],
    "backslash": ["..\\evil"],
    "empty part": ["a//b"],
    "dot": ["./a"],
    "a folder's name": ["a/"],
    "over-long": ["n" * 256],
    "over-long path": ["/".join(["d" * 200] * 6)],
    "too deep": ["/".join(["d"] * 40)],
    "NFC and NFD": ["é", unicodedata.normalize("NFD", "é")],
    "NFC and NFD folders": ["é/a", unicodedata.normalize("NFD", "é") + "/b"],
    "file and folder": ["a", "a/b"],
    "lone surrogate": ["\ud800"],
}


@pytest.mark.parametrize("what", NAMES)
def test_a_name_that_leads_elsewhere_or_collides_is_refused(what: str, place: pathlib.Path) -> None:
    names = sorted(NAMES[what])
    text = json.dumps({"files": {n: entry(b"x") for n in names}, "version": 1}, sort_keys=True, separators=(",", ":"))
    data = put_together(text.encode(), b"x" * len(names))
    refused(data, place, HotshelfError)
    try:
        data = archive_naming(names)
    except UnicodeEncodeError:
        return
    refused(data, place, HotshelfError)
    assert not os.path.exists("/tmp/hotshelf-evil")


def test_a_name_given_twice_is_refused(place: pathlib.Path) -> None:
    one = json.dumps(entry(b"x"), separators=(",", ":"))
    text = f'{{"files":{{"a":{one},"a":{one}}},"version":1}}'.encode()
    assert "twice" in refused(put_together(text, b"xx"), place, IntegrityError)


@pytest.mark.parametrize("field", ["mode", "type", "link", "sparse"])
def test_what_the_form_has_no_word_for_is_refused(field: str, place: pathlib.Path) -> None:
    text = manifest_text({"a": {**entry(b"x"), field: 0o4755}})
    refused(put_together(text, b"x"), place, IntegrityError)


def test_a_million_members_are_refused_by_the_length_of_their_list(place: pathlib.Path) -> None:
    one = json.dumps(entry(b""), separators=(",", ":"))
    text = ('{"files":{' + ",".join(f'"{number:07}":{one}' for number in range(1_000_000)) + '},"version":1}').encode()
    refused(put_together(text, b""), place, TooLarge)
    text = ('{"files":{' + ",".join(f'"{number:05}":{one}' for number in range(50_001)) + '},"version":1}').encode()
    refused(put_together(text, b""), place, TooLarge)


def test_a_bomb_is_refused_before_it_goes_off(place: pathlib.Path) -> None:
    """By what it says it becomes; and a liar by what it becomes, without a byte more being unpacked."""
    zeros = bytes(64 << 20)
    bomb = put_together(manifest_text({"a": entry(zeros)}), zeros, level=9)
    assert "times as many" in refused(bomb, place, TooLarge)
    liar = put_together(manifest_text({"a": entry(b"x")}), zeros, level=9)
    refused(liar, place, IntegrityError)
    honest_head = put_together(manifest_text({"a": entry(b"\0" * 9)}), zeros, level=9)
    assert "more than its manifest says" in refused(honest_head, place, IntegrityError)
    huge = put_together(manifest_text({"a": {"digest": Digest.of(b""), "size": 1 << 49}}), b"")
    refused(huge, place, TooLarge)
    refused(archive_of(CACHE), place, TooLarge, limits=Limits(total_bytes=objects.size_of(CACHE) - 1))
    refused(archive_of(CACHE), place, TooLarge, limits=Limits(files=len(CACHE) - 1))


def test_an_archive_cut_off_anywhere_comes_to_nothing(place: pathlib.Path) -> None:
    data = archive_of({"d/a": objects.noise("a", 300), "d/b": b"b" * 300})
    for length in range(len(data)):
        refused(data[:length], place, HotshelfError)
    refused(data + b"\0", place, IntegrityError)
    refused(data + zlib.compress(b"more"), place, IntegrityError)


def test_other_bytes_than_the_manifest_promises_come_to_nothing(place: pathlib.Path) -> None:
    text = manifest_text({"a": entry(b"right"), "b": entry(b"wrong")})
    assert "other bytes" in refused(put_together(text, b"rightWRONG"), place, IntegrityError)
    assert "ends within" in refused(put_together(text, b"right"), place, IntegrityError)


def test_a_manifest_in_another_than_its_canonical_form_is_refused(place: pathlib.Path) -> None:
    text = json.dumps(json.loads(manifest_text({"a": entry(b"x")})), indent=1).encode()
    refused(put_together(text, b"x"), place, IntegrityError)
    refused(put_together(b'{"files":{},"version":1}', b""), place, InvalidRequest)
    refused(MAGIC + (1 << 60).to_bytes(LENGTH_BYTES, "big"), place, TooLarge)


def test_nothing_is_parsed_before_the_digest_is_right(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[bytes] = []
    monkeypatch.setattr("hotshelf.archive.unpacking.Manifest.parse", parsed.append)
    monkeypatch.setattr("hotshelf.archive.unpacking.zlib.decompressobj", parsed.append)
    refused(archive_of(CACHE), place, IntegrityError, digest=Digest.of(b"another"))
    assert parsed == []


def test_an_archive_swapped_after_it_was_verified_comes_to_nothing(
    place: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, evil = archive_of({"a": b"good"}), archive_of({"a": b"evil"})
    archive = place.parent / "archive"
    verify = Digest.of_fd

    def then_swap(fd: int) -> Digest:
        digest = verify(fd)
        archive.write_bytes(evil)
        return digest

    monkeypatch.setattr("hotshelf.archive.unpacking.Digest.of_fd", then_swap)
    assert "changed" in refused(good, place, IntegrityError)


def test_a_disk_without_room_is_said_and_left_clean(place: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, written = os.write, []

    def full(fd: int, data: bytes) -> int:
        written.append(data)
        if len(written) == 3:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(fd, data)

    monkeypatch.setattr("hotshelf.archive.unpacking.os.write", full)
    refused(archive_of(CACHE), place, InsufficientSpace)
    assert len(written) == 3


@pytest.mark.parametrize("what", ["a folder", "nothing", "a pipe"])
def test_what_is_no_file_is_no_archive(what: str, place: pathlib.Path) -> None:
    path = place.parent / "archive"
    if what == "a folder":
        path.mkdir()
    elif what == "a pipe":
        os.mkfifo(path)
    with pytest.raises(HotshelfError):
        unpack(path, place / "new", digest=Digest.of(b""))
    with pytest.raises(InvalidRequest):
        unpack(path, place / "new", digest="sha256:nonsense")
    assert os.listdir(place) == []


# ---- chance


def test_no_mutation_of_an_archive_leaves_its_folder_or_is_taken_for_whole(place: pathlib.Path) -> None:
    """1,000 of them, each leased under the digest that it has: only what holds together is unpacked."""
    chance, good = random.Random("archives"), archive_of({"d/a": objects.noise("a", 300), "d/e/b": b"b" * 300, "c": b""})
    for _ in range(1_000):
        data = mutated(good, chance)
        with suppress(HotshelfError):
            found = opened(data, place)
            assert objects.manifest_of(found).canonical() in data
            shutil.rmtree(place / "new")
        assert os.listdir(place) == []
