"""Sources: what a user writes, checked once, and written back as it was."""

from __future__ import annotations

import re
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.source import Source
from tests.shared.strategies import digests, names

PIN = Digest.of(b"")

paths = st.lists(names.filter(lambda name: not any(0x7F <= ord(c) < 0xA0 for c in name)), min_size=1, max_size=4).map("/".join)
buckets = st.from_regex(r"[a-z0-9][a-z0-9.-]{2,20}", fullmatch=True)
dotted = st.text(string.ascii_letters + string.digits + "._=-", min_size=1, max_size=20)
words = dotted.filter(lambda word: word.strip("."))
unescaped = paths.filter(lambda path: not re.search(r"[?#]|%[0-9A-Fa-f]{2}", path))
hub_names = st.from_regex(r"[A-Za-z0-9_]([._-]?[A-Za-z0-9_]){0,20}", fullmatch=True).filter(lambda n: not n.endswith(".git"))
refs = st.from_regex(r"[A-Za-z0-9_]([./@+-]?[A-Za-z0-9_]){0,20}", fullmatch=True)
written = st.one_of(
    st.builds("s3://{}/{}".format, buckets, paths),
    st.builds("s3://{}".format, buckets),
    st.builds("gs://{}/{}".format, buckets, paths),
    st.builds("hf://{}/{}".format, hub_names, hub_names),
    st.builds("hf://{}/{}@{}".format, hub_names, hub_names, refs),
    st.builds("https://{}/{}".format, buckets, unescaped),
    st.builds("https://{}:8443/{}".format, buckets, unescaped),
    st.builds("file:///{}".format, paths),
    st.builds("pipeline:{}".format, words),
    st.builds("bundle:{}/{}".format, words, words),
    words,
)


def parsed(text: str) -> Source | None:
    try:
        return Source.parse(text)
    except InvalidRequest:
        return None


@given(written, st.none() | digests)
def test_what_str_writes_parse_reads(text: str, pin: Digest | None) -> None:
    source = Source.parse(f"{text}@{pin}" if pin else text)
    assert Source.parse(str(source)) == source
    assert source.pinned == pin
    assert source.unpinned.pinned is None
    assert source.unpinned.pin(PIN).pinned == PIN


@given(
    st.one_of(
        st.text(max_size=40), st.builds("{}://{}".format, st.sampled_from(["s3", "gs", "hf", "https", "file"]), st.text())
    )
)
def test_whatever_is_accepted_reads_back_and_stays_in_its_folder(text: str) -> None:
    source = parsed(text)
    if source is not None:
        assert Source.parse(str(source)) == source
        assert not {"..", "."} & set(source.path.split("/"))
        assert not any(c in source.path for c in "\\\0\n\r")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://weights/sdxl", Source("s3", "weights", "sdxl")),
        ("s3://weights/sdxl/", Source("s3", "weights", "sdxl")),
        ("S3://weights/sdxl", Source("s3", "weights", "sdxl")),
        ("s3://weights", Source("s3", "weights", "")),
        ("s3://weights/", Source("s3", "weights", "")),
        (f"s3://weights/a b/ü.safetensors@{PIN}", Source("s3", "weights", "a b/ü.safetensors", PIN)),
        ("s3://weights/name@home/x", Source("s3", "weights", "name@home/x")),
        ("gs://weights/m", Source("gs", "weights", "m")),
        ("hf://org/name", Source("hf", "org", "name")),
        ("hf://org/name@main", Source("hf", "org", "name", None, "main")),
        ("hf://org/name@refs/pr/1", Source("hf", "org", "name", None, "refs/pr/1")),
        ("hf://org/name@v1.0+cu/ä", Source("hf", "org", "name", None, "v1.0+cu/ä")),
        (f"hf://org/name@{PIN}", Source("hf", "org", "name", PIN)),
        (f"hf://org/name@main@{PIN}", Source("hf", "org", "name", PIN, "main")),
        ("https://cdn.example:8443/a/b", Source("https", "cdn.example:8443", "a/b")),
        ("https://CDN.Example/A b/c", Source("https", "cdn.example", "A b/c")),
        ("file:///models/sdxl", Source("file", "", "models/sdxl")),
        ("pipeline:ab12", Source("pipeline", "", "ab12")),
        ("bundle:env/graph", Source("bundle", "", "env/graph")),
        ("sdxl", Source("name", "", "sdxl")),
        ("loras/style.safetensors", Source("name", "", "loras/style.safetensors")),
        (f"sdxl@{PIN}", Source("name", "", "sdxl", PIN)),
        ("weird:name", Source("name", "", "weird:name")),
    ],
)
def test_the_forms_of_the_contract(text: str, expected: Source) -> None:
    assert Source.parse(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "s3://", "s3:///key", "s3://b/../c", "s3://b/a/..", "s3://b/a//b", "s3://b/./a", "s3://b/a\0b", "s3://b/a\\b",
        "s3://b/a\nb", "s3://b/a\x7fb", "s3://b/a\x85b", "s3://-b/a", "s3://b_ä/a", "s3://user:secret@b/a",
        "https://u:p@host/x",
        "https://host/a%20b", "https://host/a?download=true", "https://host/a#b",
        "https://host:port/x", "https:///x", "ftp://host/x", "javascript://x/y", "hf://org", "hf://org/", "hf://org/..",
        "hf://org/name/file.bin", "hf://org/a--b", "hf://org-/a", "hf://o..g/a", "hf://org/name.git", "hf://org/ä",
        "hf://org/a b",
        f"hf://org/{'n' * 97}", "hf://org/name@", "hf://org/name@a b", "hf://org/name@../x", "hf://org/name@/x", "hf://org/name@-x",
        "hf://org/name@x/", "hf://org/name@a^", "hf://org/name@a~1", "hf://org/name@a:b", "hf://org/name@a?b", "hf://org/name@a//b",
        "gs://",
        "file://etc/passwd", "file:///", "file:///a/../../etc", "file://", "..", "../x", "a/../b", "./x", "pipeline:",
        "pipeline:a/b/c",
        "pipeline:../x", "bundle:a b", "bundle:..%2f", "s3://b/a@sha256:xyz", "name@sha256:", f"@{PIN}", "\ud800",
        "s3://b/" + "k" * 2048,
        None, 5, b"s3://b/a", ["s3://b/a"],
    ],
    ids=lambda text: ascii(text)[:30],
)  # fmt: skip
def test_a_malformed_source_is_refused_with_words_and_a_hint(text: object) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Source.parse(text)
    assert refused.value.message
    assert refused.value.hint
    assert len(str(refused.value)) < 1_000


@pytest.mark.parametrize("key", ["..", ".", "a/..", "../a"])
@pytest.mark.parametrize("kind", ["pipeline", "bundle"])
def test_a_key_that_is_a_step_out_of_its_folder_is_refused(kind: str, key: str) -> None:
    with pytest.raises(InvalidRequest):
        Source.parse(f"{kind}:{key}")


def test_credentials_in_a_source_are_never_repeated() -> None:
    with pytest.raises(InvalidRequest) as refused:
        Source.parse("s3://AKIAEXAMPLE:hunter2@bucket/key")
    assert "hunter2" not in str(refused.value)


def test_the_refusal_of_an_unknown_scheme_names_the_known_ones() -> None:
    with pytest.raises(InvalidRequest) as refused:
        Source.parse("ftp://host/x")
    assert all(kind in refused.value.hint for kind in ("s3", "gs", "hf", "https", "file"))


@pytest.mark.parametrize(
    ("text", "fixed"),
    [
        ("hf://org/name", False), ("hf://org/name@main", False), ("hf://org/name@refs/pr/1", False),
        (f"hf://org/name@{'a' * 39}", False), (f"hf://org/name@{'A' * 40}", False), (f"hf://org/name@{'a' * 40}", True),
        (f"hf://org/name@{'a' * 64}", True), (f"hf://org/name@main@{PIN}", True), ("s3://b/a", False),
        (f"s3://b/a@{PIN}", True),
    ],
)  # fmt: skip
def test_a_commit_or_a_digest_fixes_what_a_source_stands_for(text: str, fixed: bool) -> None:
    assert Source.parse(text).is_fixed is fixed
