"""Truss's `model_cache:` in our words, and what of it is refused or left out."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared.errors import BadConfiguration
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.truss import KEYS, Cached, ModelCache

SECRET = "s3cr3t-value-that-nobody-may-see"
SDXL = "stabilityai/stable-diffusion-xl-base-1.0"


def only(**entry: Any) -> Cached:
    (found,) = ModelCache.parse([entry]).entries
    return found


def refusal(*entries: object) -> BadConfiguration:
    with pytest.raises(BadConfiguration) as refused:
        ModelCache.parse([*entries])
    assert refused.value.hint
    assert SECRET not in str(refused.value)
    return refused.value


# ---- what it names


@pytest.mark.parametrize(
    ("entry", "name", "source", "folder"),
    [
        ({"repo_id": SDXL}, SDXL, f"hf://{SDXL}", None),
        ({"repo_id": SDXL, "revision": "main"}, SDXL, f"hf://{SDXL}", None),
        ({"repo_id": SDXL, "revision": ""}, SDXL, f"hf://{SDXL}", None),
        ({"repo_id": SDXL, "revision": "fp16"}, SDXL, f"hf://{SDXL}@fp16", None),
        ({"repo_id": SDXL, "kind": "hf", "revision": None}, SDXL, f"hf://{SDXL}", None),
        ({"repo_id": "gs://bucket"}, "bucket", "gs://bucket", "bucket"),
        ({"repo_id": "gcs://bucket/a/b/"}, "bucket/a/b", "gs://bucket/a/b", "bucket/a/b"),
        ({"repo_id": "s3://bucket/a", "kind": "s3"}, "bucket/a", "s3://bucket/a", "bucket/a"),
        ({"repo_id": "s3://bucket/a", "kind": "hf"}, "bucket/a", "s3://bucket/a", "bucket/a"),
        ({"repo_id": "bucket/a", "kind": "s3"}, "bucket/a", "s3://bucket/a", "bucket/a"),
        ({"repo_id": "bucket", "kind": "gcs"}, "bucket", "gs://bucket", "bucket"),
        (
            {"repo_id": "bucket/a", "kind": "s3", "use_volume": True, "volume_folder": "my/sdxl"},
            "bucket/a",
            "s3://bucket/a",
            "my/sdxl",
        ),
        ({"repo_id": SDXL, "revision": "fp16", "use_volume": True, "volume_folder": "x"}, SDXL, f"hf://{SDXL}@fp16", "x"),
    ],
)
def test_an_entry_is_a_source_a_name_and_the_folder_where_truss_would_put_it(
    entry: dict[str, Any], name: str, source: str, folder: str | None
) -> None:
    found = only(**entry)
    assert (found.name, str(found.source), found.folder) == (name, source, folder)


def test_patterns_are_held_against_paths_below_the_folder_also_where_truss_writes_whole_keys() -> None:
    entry = {"repo_id": "s3://bucket/a/b", "allow_patterns": ["a/b/unet/*", "*.json"], "ignore_patterns": ["a/b/*.bin", "c"]}
    assert only(**entry).patterns == Patterns.parse(["unet/*", "*.json"], ["*.bin", "c"])
    assert only(repo_id="a/b", allow_patterns=["a/b/*"]).patterns == Patterns.parse(["a/b/*"])
    assert only(repo_id="s3://b").patterns == Patterns()


def test_the_secret_with_the_token_is_known_by_name() -> None:
    assert only(repo_id=SDXL).token_secret == "hf_access_token"
    assert only(repo_id=SDXL, runtime_secret_name="my_token").token_secret == "my_token"


@pytest.mark.parametrize("nothing", [None, []])
def test_nothing_is_nothing(nothing: object) -> None:
    assert ModelCache.parse(nothing) == ModelCache.of({"model_cache": nothing}) == ModelCache.of({}) == ModelCache()


# ---- several of one


def test_entries_of_one_repository_and_revision_are_one_with_the_files_of_both() -> None:
    cache = ModelCache.parse(
        [{"repo_id": SDXL, "allow_patterns": ["unet/*"]}, {"repo_id": "x/y"}, {"repo_id": SDXL, "allow_patterns": ["vae/*"]}]
    )
    assert [(one.name, one.patterns.allow) for one in cache.entries] == [(SDXL, ("unet/*", "vae/*")), ("x/y", None)]
    assert len(cache.given) == 3


def test_every_file_and_some_files_are_every_file() -> None:
    for both in (
        [{"repo_id": "s3://b"}, {"repo_id": "s3://b", "allow_patterns": ["*.json"]}],
        [{"repo_id": "s3://b", "allow_patterns": ["x"]}, {"repo_id": "b", "kind": "s3"}],
    ):
        (one,) = ModelCache.parse(both).entries
        assert one.patterns == Patterns()


def test_entries_of_one_repository_that_ignore_different_files_are_refused_with_what_to_do() -> None:
    error = refusal({"repo_id": SDXL}, {"repo_id": SDXL, "ignore_patterns": ["*.bin"]})
    assert "model_cache[0] and model_cache[1]" in error.message
    assert "ignore_patterns" in error.hint


def test_two_revisions_are_two_names_and_so_are_two_folders() -> None:
    cache = ModelCache.parse([{"repo_id": SDXL}, {"repo_id": SDXL, "revision": "fp16"}])
    assert [one.name for one in cache.entries] == [SDXL, f"{SDXL}@fp16"]
    the_other_way = ModelCache.parse([{"repo_id": SDXL, "revision": "fp16"}, {"repo_id": SDXL}])
    assert [one.name for one in the_other_way.entries] == [f"{SDXL}@fp16", SDXL]
    volumes = [{"repo_id": "s3://b/m", "use_volume": True, "volume_folder": folder} for folder in ("one", "two")]
    assert [one.name for one in ModelCache.parse(volumes).entries] == ["b/m", "two"]


def test_a_bucket_and_a_repository_that_would_have_one_name_are_refused() -> None:
    error = refusal({"repo_id": "acme/m"}, {"repo_id": "s3://acme/m"})
    assert "model_cache[1]" in error.message
    assert "'acme/m'" in error.message


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"repo_id": "s3://b"}, {"repo_id": "s3://b/p"}),
        ({"repo_id": "s3://b/p/q"}, {"repo_id": "gs://b/p"}),
        ({"repo_id": "s3://b"}, {"repo_id": "x/y", "use_volume": True, "volume_folder": "b/p"}),
        ({"repo_id": "s3://b/one"}, {"repo_id": "x/y", "use_volume": True, "volume_folder": "b/one"}),
        ({"repo_id": "s3://b"}, {"repo_id": "gs://b"}),
    ],
)
def test_what_would_show_within_another_is_refused(one: dict[str, Any], other: dict[str, Any]) -> None:
    for both in ((one, other), (other, one)):
        error = refusal(*both)
        assert "model_cache[0]" in error.message
        assert "model_cache[1]" in error.message
    ModelCache.parse([{"repo_id": "s3://b-x"}, {"repo_id": "s3://b/p"}, {"repo_id": "s3://b/p-q"}])


# ---- what is refused, and what is left out


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({}, "repo_id"),
        ({"repo_id": ""}, "repo_id"),
        ({"repo_id": 7}, "repo_id"),
        ({"repo_id": "gpt2"}, "repo_id"),
        ({"repo_id": "a/b/c"}, "repo_id"),
        ({"repo_id": f"a/b@{SECRET}"}, "repo_id"),
        ({"repo_id": "ftp://b/c"}, "repo_id"),
        ({"repo_id": "s3://"}, "repo_id"),
        ({"repo_id": "s3://b/../c"}, "repo_id"),
        ({"repo_id": f"s3://user:{SECRET}@b/c"}, "repo_id"),
        ({"repo_id": "s3://b/" + "x" * 300}, "repo_id"),
        ({"repo_id": "s3://b", "kind": "gcs"}, "kind"),
        ({"repo_id": "b", "kind": SECRET}, "kind"),
        ({"repo_id": "b", "kind": ["s3"]}, "kind"),
        ({"repo_id": SDXL, "revision": 1234567}, "revision"),
        ({"repo_id": SDXL, "allow_patterns": "*.bin"}, "allow_patterns"),
        ({"repo_id": SDXL, "allow_patterns": []}, "allow_patterns"),
        ({"repo_id": SDXL, "ignore_patterns": [1]}, "ignore_patterns"),
        ({"repo_id": SDXL, "ignore_patterns": [""]}, "ignore_patterns"),
        ({"repo_id": SDXL, "use_volume": "yes"}, "use_volume"),
        ({"repo_id": SDXL, "use_volume": True}, "volume_folder"),
        ({"repo_id": SDXL, "use_volume": True, "volume_folder": "../x"}, "volume_folder"),
        ({"repo_id": SDXL, "use_volume": True, "volume_folder": "/x"}, "volume_folder"),
        ({"repo_id": SDXL, "use_volume": True, "volume_folder": "x\x00"}, "volume_folder"),
        ({"repo_id": SDXL, "use_volume": True, "volume_folder": "x\ny"}, "volume_folder"),
        ({"repo_id": SDXL, "runtime_secret_name": "../hf"}, "runtime_secret_name"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused_by_entry_and_key(entry: dict[str, Any], key: str) -> None:
    error = refusal({"repo_id": "first/one"}, entry)
    assert "model_cache[1]" in error.message
    assert key in error.message


@pytest.mark.parametrize("entry", [None, "a/b", ["a/b"], {1: "a/b"}])
def test_an_entry_that_is_no_mapping_is_refused(entry: object) -> None:
    assert refusal(entry).message == "model_cache[0] is no mapping"


@pytest.mark.parametrize("value", [{"repo_id": SDXL}, SDXL, 3])
def test_what_is_no_list_is_refused(value: object) -> None:
    with pytest.raises(BadConfiguration, match="no list"):
        ModelCache.parse(value)


@pytest.mark.parametrize("entry", [{"repo_id": "c/m", "kind": "azure"}, {"repo_id": "azure://c/m"}])
def test_azure_is_refused_with_what_to_do_instead(entry: dict[str, Any]) -> None:
    error = refusal(entry)
    assert "Azure" in error.message
    assert "S3" in error.hint


def test_unknown_keys_are_named_and_neither_kept_nor_repeated() -> None:
    cache = ModelCache.parse([{"repo_id": SDXL, "token": SECRET, "revison": "x"}])
    assert len(cache.warnings) == 2
    assert "model_cache[0]" in cache.warnings[0]
    assert "'token'" in cache.warnings[0]
    assert cache.given == ({"repo_id": SDXL},)
    assert SECRET not in repr(cache)


def test_what_truss_does_not_heed_either_is_said() -> None:
    for entry, word in (
        ({"repo_id": "s3://b", "revision": "v1"}, "revision"),
        ({"repo_id": SDXL, "volume_folder": "x"}, "volume_folder"),
    ):
        (warning,) = ModelCache.parse([entry]).warnings
        assert word in warning


def test_the_old_name_is_read_and_the_new_one_wins() -> None:
    old = ModelCache.of({"hf_cache": [{"repo_id": SDXL}]})
    assert [one.name for one in old.entries] == [SDXL]
    assert "hf_cache" in old.warnings[0]
    both = ModelCache.of({"hf_cache": [{"repo_id": SDXL}], "model_cache": [{"repo_id": "x/y"}]})
    assert [one.name for one in both.entries] == ["x/y"]
    assert "hf_cache" in both.warnings[0]


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.text(max_size=20)
    | st.sampled_from(["s3://b/p", SDXL, "gs://b", "s3", "../.."]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=6,
)


@given(st.lists(st.dictionaries(st.sampled_from((*KEYS, "odd")), values, max_size=6) | values, max_size=4))
def test_whatever_stands_there_is_read_or_refused_and_names_and_folders_are_each_once(entries: list[object]) -> None:
    try:
        cache = ModelCache.parse(entries)
    except BadConfiguration:
        return
    names, folders = [one.name for one in cache.entries], [one.folder for one in cache.entries if one.folder is not None]
    assert len({*names}) == len(names)
    assert len({*folders}) == len(folders)
    assert all(".." not in folder.split("/") and not folder.startswith("/") for folder in folders)
    again = ModelCache.parse([*cache.given])
    assert (again.entries, again.given) == (cache.entries, cache.given)
