"""Manifests: the same files, the same revision; nothing in one can step out of its folder."""

from __future__ import annotations

import json
import time
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared import manifest
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError, InvalidRequest, TooLarge
from hotshelf_shared.manifest import FileEntry, Manifest, check_path, check_paths, parse_json
from tests.shared.strategies import file_trees, manifests

ENTRY = FileEntry(Digest.of(b""), 0)
PLAIN = {"digest": str(ENTRY.digest), "size": 0}


def body(files: object, **more: Any) -> bytes:
    return json.dumps({"version": 1, "files": files, **more}).encode()


# ---- the canonical form


def test_the_canonical_form_is_compact_sorted_utf8_json() -> None:
    tree = Manifest.of({"é": ENTRY, "b/c": ENTRY, "a": FileEntry(Digest.of(b"x"), 1)})
    e, x = Digest.of(b""), Digest.of(b"x")
    assert tree.canonical().decode() == (
        f'{{"files":{{"a":{{"digest":"{x}","size":1}},"b/c":{{"digest":"{e}","size":0}},"é":{{"digest":"{e}","size":0}}}},"version":1}}'
    )
    assert tree.revision == Digest.of(tree.canonical())


def test_a_revision_never_changes_between_releases() -> None:
    tree = Manifest.of({"model_index.json": FileEntry(Digest.of(b"{}"), 2), "unet/w": FileEntry(Digest.of(b"w"), 1)})
    assert tree.revision == "sha256:7c007e1eb61ffdb15d03dd7deaa3d1c03eda772e70893754bfa67541533ca7f9"


@given(manifests)
def test_parse_reads_what_canonical_writes(tree: Manifest) -> None:
    again = Manifest.parse(tree.canonical())
    assert again == tree
    assert again.revision == tree.revision
    assert again.canonical() == tree.canonical()


@given(file_trees(), st.randoms(use_true_random=False))
def test_the_revision_does_not_depend_on_the_order_of_files_nor_on_white_space(
    files: dict[str, FileEntry], random: Any
) -> None:
    paths = list(files)
    random.shuffle(paths)
    shuffled = Manifest.of({path: files[path] for path in paths})
    loose = json.dumps(json.loads(shuffled.canonical()), indent=3, ensure_ascii=True).encode()
    assert shuffled.revision == Manifest.of(files).revision == Manifest.parse(loose).revision


@given(manifests, st.integers(0, 7))
def test_any_change_changes_the_revision(tree: Manifest, which: int) -> None:
    files = dict(tree.files)
    if files:
        path = sorted(files)[which % len(files)]
        other = FileEntry(files[path].digest, files[path].size ^ 1)
        assert Manifest.of({**files, path: other}).revision != tree.revision
        assert tree.only(lambda each: each != path).revision != tree.revision
    assert Manifest.of({**files, "an extra/path that is new": ENTRY}).revision != tree.revision


@given(manifests)
def test_blobs_count_each_content_once_and_size_counts_every_file(tree: Manifest) -> None:
    assert set(tree.blobs()) == {entry.digest for entry in tree.values()}
    assert tree.size == sum(entry.size for entry in tree.values())


# ---- paths

HOSTILE = [
    "", "/", "/etc/passwd", "..", "../x", "a/..", "a/../b", "a/../../b", ".", "./a", "a/.", "a/./b", "a//b", "a/", "//a",
    "a\0b", "\0", "a\\b", "..\\x", "C:\\x", "x" * 256, "é" * 128, "/".join(["d" * 100] * 11), "x/" * 2048 + "x", "a" * 4096,
    "\ud800", "a/\udfff",
]  # fmt: skip


@pytest.mark.parametrize("path", HOSTILE, ids=lambda path: ascii(path)[:24])
def test_a_path_that_could_do_harm_is_refused(path: str) -> None:
    with pytest.raises(InvalidRequest):
        check_path(path)
    with pytest.raises(InvalidRequest):
        Manifest.of({"fine": ENTRY, path: ENTRY})
    with pytest.raises(IntegrityError):
        Manifest.parse(body({"fine": PLAIN, path: PLAIN}))


@pytest.mark.parametrize("path", ["a", "...", "..a", "a..", ".hidden", "a b", "ä/ö", "-rf", "x" * 255, "~", "a:b", "%2e%2e/x"])
def test_an_odd_but_harmless_path_is_kept_as_it_is(path: str) -> None:
    assert check_path(path) == path
    assert list(Manifest.of({path: ENTRY})) == [path]


@pytest.mark.parametrize("path", [None, 5, b"a", ["a"], True])
def test_a_path_that_is_not_text_is_refused(path: object) -> None:
    with pytest.raises(InvalidRequest):
        check_path(path)


@given(st.text(max_size=40))
def test_no_accepted_path_leaves_its_folder(path: str) -> None:
    try:
        check_path(path)
    except InvalidRequest:
        return
    parts = path.split("/")
    assert not path.startswith("/")
    assert not {"", ".", ".."} & set(parts)
    assert "\0" not in path
    assert "\\" not in path


def test_a_path_of_the_most_bytes_is_kept_and_one_more_is_refused() -> None:
    most = "/".join(["d" * 127] * 8)
    assert len(check_path(most + "e")) == manifest.MAX_PATH_BYTES
    with pytest.raises(InvalidRequest, match=r"1024|1,024"):
        check_path(most + "ee")


@pytest.mark.parametrize(
    ("one", "other"),
    [("é", unicodedata.normalize("NFD", "é")), ("a/Å", "a/\u212b"), ("한", unicodedata.normalize("NFD", "한"))],
    ids=["NFC-NFD", "Angstrom", "Hangul"],
)
def test_paths_that_are_one_path_in_normal_form_are_refused(one: str, other: str) -> None:
    assert one != other
    with pytest.raises(InvalidRequest, match="collide"):
        check_paths([one, other])


def test_folders_that_are_one_folder_in_normal_form_are_refused() -> None:
    with pytest.raises(InvalidRequest, match=r"collide|folder"):
        check_paths(["é/a", unicodedata.normalize("NFD", "é") + "/b"])


@pytest.mark.parametrize(
    "paths", [["a", "a/b"], ["a/b", "a"], ["a/b/c/d", "a/b"], ["é", unicodedata.normalize("NFD", "é") + "/b"]]
)
def test_a_path_that_is_file_and_folder_at_once_is_refused(paths: list[str]) -> None:
    with pytest.raises(InvalidRequest, match=r"folder"):
        check_paths(paths)


def test_neighbours_that_merely_look_alike_are_kept() -> None:
    check_paths(["a", "ab/c", "a.b", "A", "a-b/c"])


# ---- caps


def test_the_most_files_are_kept_and_one_more_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "MAX_FILES", 10)
    assert len(Manifest.of({f"f{n}": ENTRY for n in range(10)})) == 10
    with pytest.raises(TooLarge):
        Manifest.of({f"f{n}": ENTRY for n in range(11)})


def test_fifty_thousand_files_is_the_cap() -> None:
    assert manifest.MAX_FILES == 50_000
    with pytest.raises(TooLarge):
        check_paths(f"f{n}" for n in range(50_001))


def test_a_manifest_over_eight_mebibytes_is_refused_unread() -> None:
    with pytest.raises(TooLarge):
        Manifest.parse(b" " * ((8 << 20) + 1))


def test_a_manifest_of_eight_mebibytes_is_read() -> None:
    tree = Manifest.of({"a": FileEntry(Digest.of(b""), 0)})
    assert Manifest.parse(tree.canonical().ljust(8 << 20)) == tree


def test_rows_are_the_files_as_json_in_order() -> None:
    tree = Manifest.of({"b": FileEntry(Digest.of(b"b"), 2), "a": FileEntry(Digest.of(b"a"), 1)})
    assert json.loads(tree.rows_json) == [
        {"path": "a", "digest": Digest.of(b"a"), "size": 1},
        {"path": "b", "digest": Digest.of(b"b"), "size": 2},
    ]


@pytest.mark.parametrize("piece", [b"[],", b"{},", b"1,", b'"",'])
def test_millions_of_values_are_refused_at_once(piece: bytes) -> None:
    began = time.process_time()
    with pytest.raises(IntegrityError):
        Manifest.parse(b"[" + piece * ((8 << 20) // len(piece) - 2) + b"1]")
    assert time.process_time() - began < 0.2


def test_a_manifest_of_the_most_files_there_may_be_is_read() -> None:
    tree = Manifest.of({f"a,{{[{number}": FileEntry(Digest.of(b""), number) for number in range(50_000)})
    assert Manifest.parse(tree.canonical()) == tree


@pytest.mark.parametrize("size", [-1, (1 << 50) + 1, 1 << 63, 1.0, "1", None, True, [1]])
def test_a_size_that_no_file_has_is_refused(size: object) -> None:
    with pytest.raises(IntegrityError):
        Manifest.parse(body({"a": {**PLAIN, "size": size}}))


# ---- broken content


@pytest.mark.parametrize(
    "data",
    [
        b"", b"null", b"[]", b"{", b"\xff", b"\xef\xbb\xbf{}", b"{}", b'{"version":1}', b'{"version":1,"files":[]}',
        b'{"version":2,"files":{}}', b'{"version":1,"files":{"a":null}}', b'{"version":1,"files":{"a":{}}}',
        b'{"version":1,"files":{"a":{"digest":"sha256:0","size":1}}}', b'{"version":NaN,"files":{}}',
        b'{"version":1,"files":{}}{}', b'{"version":1,"files":{},"files":{}}', b'{"version":1,"version":1,"files":{}}',
    ],
)  # fmt: skip
def test_a_broken_manifest_is_an_integrity_error(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Manifest.parse(data)


def test_an_entry_with_a_field_too_many_is_refused() -> None:
    with pytest.raises(IntegrityError):
        Manifest.parse(body({"a": {**PLAIN, "mode": "0777"}}))


def test_a_path_that_stands_twice_is_refused() -> None:
    entry = json.dumps(PLAIN)
    with pytest.raises(IntegrityError, match="twice"):
        Manifest.parse(f'{{"version":1,"files":{{"a":{entry},"a":{entry}}}}}'.encode())


@pytest.mark.parametrize("opening", [b"[", b'{"a":'], ids=["lists", "objects"])
@pytest.mark.parametrize("depth", [1_000, 100_000])
def test_deep_nesting_is_refused_and_does_not_crash(opening: bytes, depth: int) -> None:
    with pytest.raises(IntegrityError):
        Manifest.parse(opening * depth)


def test_a_number_of_a_million_digits_is_refused_at_once() -> None:
    with pytest.raises(IntegrityError):
        Manifest.parse(b'{"version":1,"files":{"a":{"digest":"x","size":' + b"9" * 1_000_000 + b"}}}")


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_but_the_error_asked_for(data: bytes) -> None:
    with pytest.raises(IntegrityError):
        Manifest.parse(data)


@given(manifests, st.integers(min_value=0), st.integers(0, 255))
def test_a_changed_byte_gives_another_revision_or_an_integrity_error(tree: Manifest, at: int, value: int) -> None:
    data = bytearray(tree.canonical())
    data[at % len(data)] = value
    try:
        again = Manifest.parse(bytes(data))
    except IntegrityError:
        return
    assert (again.revision == tree.revision) == (bytes(data) == tree.canonical() or again == tree)


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", '{"a":1,"a":2}', "[1,", "", "'a'", r'["\ud83d"]'])
def test_json_that_is_none_raises_the_error_asked_for_and_names_what(text: str) -> None:
    with pytest.raises(InvalidRequest, match="the thing"):
        parse_json(text, "the thing", InvalidRequest)


def test_both_halves_of_a_pair_are_text() -> None:
    assert parse_json(r'["\ud83d\ude00"]', "the thing", InvalidRequest) == ["\U0001f600"]
