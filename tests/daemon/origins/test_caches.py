"""What is found in a Hugging Face cache, and what is never opened there."""

from __future__ import annotations

import os
import pathlib

import pytest

from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin.caches import LISTED_S, Caches, is_git_s, name_of
from hotshelf_shared.digest import Digest
from tests.servers.hub import git_name

DATA = b"weights"
NAME = Digest.of(DATA).hex


def put(cache: pathlib.Path, name: str = NAME, data: bytes = DATA, repository: str = "models--org--name") -> pathlib.Path:
    blobs = cache / repository / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    (blobs / name).write_bytes(data)
    return blobs / name


def found(caches: Caches, name: str = NAME, size: int = len(DATA)) -> str | None:
    with caches.opened(name, size) as one:
        if one is None:
            return None
        assert os.pread(one.fd, 100, 0)
        return one.path


def test_a_digest_is_looked_for_and_git_s_name_only_for_what_lies_on_a_hub() -> None:
    git = git_name(DATA)
    digest = Digest.of(DATA)
    assert name_of("s3://b", OriginObject("k", 7, "etag"), digest) == digest.hex
    assert name_of("hf:https://hub", OriginObject("k", 7, digest.hex), digest) == digest.hex
    assert name_of("hf:https://hub", OriginObject("k", 7, git), None) == git
    assert name_of("hf:https://hub", OriginObject("k", 7, git), digest) == git  # what was learnt of it
    assert name_of("https://host", OriginObject("k", 7, git), None) is None
    assert name_of("hf:https://hub", OriginObject("k", 7, digest.hex), None) is None


def test_git_s_name_is_of_all_bytes_and_their_number() -> None:
    pieces = [memoryview(DATA[:3]), memoryview(DATA[3:])]
    assert is_git_s(git_name(DATA), len(DATA), pieces)
    assert not is_git_s(git_name(DATA), len(DATA) + 1, pieces)
    assert not is_git_s(git_name(b"other"), len(DATA), pieces)


@pytest.mark.parametrize("repository", ["models--org--name", "models--other--fork", "datasets--org--data", "spaces--org--app"])
def test_a_content_is_found_in_whatever_repository_holds_it(tmp_path: pathlib.Path, repository: str) -> None:
    put(tmp_path / "b", repository=repository)
    caches = Caches([str(tmp_path / "nowhere"), str(tmp_path / "a"), str(tmp_path / "b")])
    assert found(caches) == f"{tmp_path}/b/{repository}/blobs/{NAME}"
    assert found(caches, "0" * 64) is None
    assert caches.lists(NAME)
    assert not caches.lists("0" * 64)


def test_a_link_into_the_blobs_that_repositories_share_is_followed(tmp_path: pathlib.Path) -> None:
    xet = "ab" + "0" * 62
    link = put(tmp_path, "f" * 64).with_name(NAME)
    (tmp_path / "blobs" / "ab").mkdir(parents=True)
    (tmp_path / "blobs" / "ab" / xet).write_bytes(DATA)
    link.symlink_to(f"../../blobs/ab/{xet}")
    assert found(Caches([str(tmp_path)])) == str(link)


def test_no_other_link_is_followed(tmp_path: pathlib.Path) -> None:
    cache, outside, xet = tmp_path / "cache", tmp_path / "outside", "ab" + "0" * 62
    (outside / "blobs").mkdir(parents=True)
    (outside / "ab").mkdir()
    for place in (outside / NAME, outside / "blobs" / NAME, outside / "ab" / xet):
        place.write_bytes(DATA)
    put(cache, "f" * 64)
    blobs = cache / "models--org--name" / "blobs"
    for leads in (outside / NAME, "../../../outside/" + NAME, "../../blobs/../../outside/ab/" + xet, "f" * 64):
        (blobs / NAME).symlink_to(leads)
        assert found(Caches([str(cache)])) is None
        (blobs / NAME).unlink()
    (cache / "models--a--link").symlink_to(outside)
    (cache / "models--a--folder").mkdir()
    (cache / "models--a--folder" / "blobs").symlink_to(outside / "blobs")
    assert found(Caches([str(cache)])) is None
    (blobs / NAME).symlink_to(f"../../blobs/ab/{xet}")
    (cache / "blobs").symlink_to(outside)
    assert found(Caches([str(cache)])) is None


def test_what_is_no_regular_file_is_passed_over_at_once(tmp_path: pathlib.Path) -> None:
    pipe = put(tmp_path, repository="models--a--pipe")
    pipe.unlink()
    os.mkfifo(pipe)
    folder = put(tmp_path, repository="models--b--folder")
    folder.unlink()
    folder.mkdir()
    caches = Caches([str(tmp_path)])
    assert [found(caches, size=size) for size in (0, len(DATA), folder.stat().st_size)] == [None] * 3
    whole = put(tmp_path, repository="models--c--whole")
    assert found(Caches([str(tmp_path)])) == str(whole)


def test_what_is_not_done_or_cut_off_is_passed_over_and_the_latter_said_once(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, f"{NAME}.0a1b.incomplete")
    assert not Caches([str(tmp_path)]).lists(NAME)
    put(tmp_path, data=DATA[:-1])
    caches = Caches([str(tmp_path)])
    assert [found(caches), found(caches)] == [None, None]
    assert len([record for record in caplog.records if "not what its name says" in record.message]) == 1


def test_what_was_wrong_is_not_looked_at_again_until_it_changes(tmp_path: pathlib.Path) -> None:
    path = put(tmp_path, data=b"another")
    caches = Caches([str(tmp_path)])
    with caches.opened(NAME, len(DATA)) as one:
        assert one is not None
        caches.wrong(one, "its bytes are others")
    assert found(caches) is None
    path.unlink()
    put(tmp_path)
    assert found(caches) == str(path)


def test_what_comes_or_goes_is_seen_within_moments(tmp_path: pathlib.Path) -> None:
    now = [0.0]
    caches = Caches([str(tmp_path)], clock=lambda: now[0])
    assert found(caches) is None
    path = put(tmp_path)
    assert found(caches) is None
    now[0] = LISTED_S + 1
    assert found(caches) == str(path)
    path.unlink()
    assert found(caches) is None


@pytest.mark.root
def test_what_may_not_be_read_is_passed_over(tmp_path: pathlib.Path) -> None:
    put(tmp_path, repository="models--a--closed").chmod(0)
    whole = put(tmp_path, repository="models--b--open")
    tmp_path.chmod(0o755)
    pid = os.fork()
    if not pid:
        status = 1
        try:
            os.chdir(tmp_path)
            os.setresuid(65_534, 65_534, 65_534)
            status = 0 if found(Caches(["."])) == "./models--b--open/blobs/" + whole.name else 2
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
