"""Pushing file by file and part by part: what is believed, what is sent, what is left behind when it fails."""

from __future__ import annotations

import base64
import os
import pathlib
import threading
import time
from itertools import pairwise

import pytest
from awscrt import checksums
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_daemon.origin import outgoing
from hotshelf_daemon.origin.outgoing import PART_BYTES
from hotshelf_daemon.origin.sending import SMALL_BYTES
from hotshelf_daemon.publish import Parcel, PublishReport, Stopped, publish, publish_built
from hotshelf_shared.errors import AccessDenied, InvalidRequest, OriginUnavailable
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Progress
from tests import objects
from tests.conftest import BUCKET
from tests.faults import origin_cases as spoils
from tests.faults.scripted_origin import Ask, ScriptedOrigin
from tests.faults.test_origin import pushing
from tests.pushing import NAME, Big, Dam, bytes_sent, numbers, part_puts, settings
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

SIZE = 3 * PART_BYTES + 1_000
LABELS = {"CacheControl": "public, max-age=31536000, immutable"}


@pytest.fixture
def big(seaweedfs: SeaweedFS, tmp_path: pathlib.Path, prefix: str) -> Big:
    return Big.of(seaweedfs, tmp_path, prefix, SIZE)


def push(big: Big, recorder: Recorder, **more: object) -> PublishReport:
    return publish(str(big.folder), big.target, settings(big.origin, recorder), **more)  # type: ignore[arg-type]


class Aside(threading.Thread):
    """A push on a thread of its own; `end` is its report, or raises what it raised."""

    def __init__(self, big: Big, recorder: Recorder) -> None:
        super().__init__()
        self._big, self._recorder = big, recorder
        self._report: PublishReport | None = None
        self._error: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._report = push(self._big, self._recorder)
        except BaseException as error:
            self._error = error

    def end(self) -> PublishReport:
        self.join(120)
        if self._error is not None:
            raise self._error
        assert self._report is not None
        return self._report


@given(st.integers(0, 50 * 10**12))
def test_ten_thousand_parts_are_enough_for_any_file(size: int) -> None:
    step = outgoing.part_bytes(size)
    assert step * outgoing.MOST_PARTS >= size
    assert step == PART_BYTES or step // 2 * outgoing.MOST_PARTS < size
    assert step <= 64 << 20 or size > 625 << 30


# ---- what is there


def test_a_large_file_goes_in_parts_and_not_again(big: Big, recorder: Recorder) -> None:
    assert push(big, recorder).uploaded_bytes == SIZE
    assert numbers(part_puts(recorder, big.key)) == [1, 2, 3, 4]
    big.assert_published()
    last = [(one.method, one.key.removeprefix(f"{big.prefix}/")) for one in recorder.requests][-2:]
    assert last == [("PUT", f"manifests/{objects.manifest_of({NAME: big.data}).revision.hex}.json"), ("PUT", "hotshelf.json")]
    recorder.reset()
    again = push(big, recorder)
    assert (again.uploaded_files, again.uploaded_bytes) == (0, 0)
    assert [one.method for one in recorder.matching(prefix=big.key)] == ["HEAD"]


def test_an_object_whose_own_checksum_tells_other_bytes_is_sent_again(big: Big, recorder: Recorder) -> None:
    wrong = objects.noise("wrong", SIZE)
    crc = base64.b64encode(checksums.crc64nvme(wrong).to_bytes(8, "big")).decode()
    with big.origin.client() as client:
        labels = {"Metadata": {"sha256": big.digest.hex}}
        client.put_object(Bucket=BUCKET, Key=big.key, Body=wrong, ChecksumCRC64NVME=crc, **labels)  # type: ignore[arg-type]
    assert push(big, recorder).uploaded_bytes == SIZE
    big.assert_published()


def test_an_object_whose_own_checksum_is_ours_is_not_sent(big: Big, recorder: Recorder) -> None:
    crc = base64.b64encode(checksums.crc64nvme(big.data).to_bytes(8, "big")).decode()
    with big.origin.client() as client:
        labels = {"Metadata": {"sha256": big.digest.hex}}
        client.put_object(Bucket=BUCKET, Key=big.key, Body=big.data, ChecksumCRC64NVME=crc, **labels)  # type: ignore[arg-type]
    assert push(big, recorder).uploaded_files == 0


@pytest.mark.parametrize("size", [SIZE - 1, SIZE + 1])
def test_an_object_of_another_size_is_sent_again(big: Big, recorder: Recorder, size: int) -> None:
    with big.origin.client() as client:
        client.put_object(Bucket=BUCKET, Key=big.key, Body=bytes(size), Metadata={"sha256": big.digest.hex})
    assert push(big, recorder).uploaded_bytes == SIZE
    big.assert_published()


def test_a_blob_that_lost_its_metadata_is_known_by_the_manifest_in_force(big: Big, recorder: Recorder) -> None:
    with big.origin.client() as client:
        client.put_object(Bucket=BUCKET, Key=big.key, Body=big.data)
        assert push(big, recorder).uploaded_files == 1  # nothing vouches for it
        client.put_object(Bucket=BUCKET, Key=big.key, Body=big.data)
    assert push(big, recorder).uploaded_files == 0


def test_a_service_that_refuses_to_be_asked_for_checksums_is_asked_without_from_then_on(tmp_path: pathlib.Path) -> None:
    """As B2 does."""
    tree = {f"{name}.safetensors": objects.safetensors(name, 2_000) for name in "abcdefghijkl"}
    folder = objects.write(tmp_path / "model", tree)

    def asks(ask: Ask) -> bool:
        return "x-amz-checksum-mode" in ask.headers

    with ScriptedOrigin() as origin:
        origin.misdeed(spoils.refuse(400, "InvalidArgument"), on="HEAD", when=asks)
        assert publish(str(folder), "s3://weights/m", pushing(origin)).uploaded_files == len(tree)
        assert len([ask for ask in origin.asked if asks(ask)]) <= 8  # those that were under way


# ---- what was begun


@pytest.mark.parametrize("service", ["seaweedfs", "moto"])
def test_of_an_upload_that_was_begun_only_parts_that_are_ours_are_believed(
    service: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path, prefix: str
) -> None:
    big = Big.of(request.getfixturevalue(service), tmp_path, prefix, SIZE)
    parts = {1: big.part(1), 2: objects.noise("wrong", PART_BYTES), 3: big.part(3)[:-1]}
    upload = big.begun(parts, Metadata={"sha256": big.digest.hex}, **LABELS)
    with Recorder(big.origin.endpoint_url) as recorder:
        assert push(big, recorder).uploaded_bytes == SIZE - PART_BYTES
        assert {one.query["uploadId"] for one in part_puts(recorder, big.key)} == {upload}
        assert numbers(part_puts(recorder, big.key)) == [2, 3, 4]
    big.assert_published()


@pytest.mark.parametrize("service", ["seaweedfs", "moto"])
def test_an_upload_with_nothing_of_ours_is_not_touched_and_aborted_when_the_object_is_there(
    service: str, request: pytest.FixtureRequest, tmp_path: pathlib.Path, prefix: str
) -> None:
    big = Big.of(request.getfixturevalue(service), tmp_path, prefix, SIZE)
    old = big.begun({1: objects.noise("wrong", PART_BYTES), 7: b"more"})
    with Recorder(big.origin.endpoint_url) as recorder:
        assert push(big, recorder).uploaded_bytes == SIZE
        assert old not in {one.query["uploadId"] for one in part_puts(recorder, big.key)}
        (abort,) = recorder.matching(method="DELETE", prefix=big.key)
        assert abort.query["uploadId"] == old
    big.assert_published()


def test_an_upload_of_a_plain_name_is_never_gone_on_with(big: Big, recorder: Recorder) -> None:
    """Whose metadata it began with, nobody can tell before it is completed."""
    plain = f"{big.prefix}/{NAME}"
    with big.origin.client() as client:
        old = client.create_multipart_upload(Bucket=BUCKET, Key=plain, Metadata={"sha256": "0" * 64})["UploadId"]
        client.upload_part(Bucket=BUCKET, Key=plain, UploadId=old, PartNumber=1, Body=big.part(1))
        assert push(big, recorder, tree=True).uploaded_bytes == 2 * SIZE
        there = client.get_object(Bucket=BUCKET, Key=plain)
        assert there["Body"].read() == big.data
        assert client.list_multipart_uploads(Bucket=BUCKET, Prefix=plain).get("Uploads", []) == []
    assert (there["Metadata"], there["CacheControl"]) == ({"sha256": big.digest.hex}, "no-cache")
    big.assert_published()
    assert push(big, recorder, tree=True).uploaded_files == 0


def test_an_upload_that_was_begun_as_something_else_is_found_out_and_sent_anew(big: Big, recorder: Recorder) -> None:
    big.begun({1: big.part(1)}, Metadata={"sha256": "0" * 64})
    push(big, recorder)
    big.assert_published()


def test_a_service_that_lists_no_uploads_costs_a_resume_and_not_the_push(tmp_path: pathlib.Path) -> None:
    data = objects.noise("unlisted", SIZE)
    folder = objects.write(tmp_path / "model", {NAME: data})
    with ScriptedOrigin() as origin:
        origin.misdeed(spoils.refuse(403, "AccessDenied"), on="LIST")
        assert publish(str(folder), "s3://weights/m", pushing(origin)).uploaded_bytes == SIZE
        assert origin.objects[f"m/blobs/sha256/{objects.Digest.of(data).hex}"] == data
        assert origin.uploads_left_open == 0


@pytest.mark.parametrize("through", [0, 2])
@pytest.mark.parametrize("service", ["seaweedfs", "moto"])
def test_two_who_push_one_file_at_once_both_end_well(
    service: str, through: int, request: pytest.FixtureRequest, tmp_path: pathlib.Path, prefix: str
) -> None:
    """One is held half-way, while the other goes on with its upload, or with one of its own, and completes it."""
    big = Big.of(request.getfixturevalue(service), tmp_path, prefix, SIZE)
    with Recorder(big.origin.endpoint_url) as first, Recorder(big.origin.endpoint_url) as second:
        dam = Dam(first, big.key, through)
        slow = Aside(big, first)
        dam.wait()
        (there,) = big.unfinished().values()
        assert push(big, second).uploaded_bytes == SIZE - sum(len(big.part(number)) for number in there)
        big.assert_published()
        dam.open()
        assert slow.end().revision == objects.manifest_of({NAME: big.data}).revision
        big.assert_published()


def test_two_who_push_one_file_in_step_both_end_well(big: Big, recorder: Recorder) -> None:
    both = [Aside(big, recorder) for _ in range(2)]
    assert {one.end().revision for one in both} == {objects.manifest_of({NAME: big.data}).revision}
    big.assert_published()


# ---- what fails


def test_a_part_that_fails_is_sent_again_alone(big: Big, recorder: Recorder) -> None:
    recorder.answer(500, b"", method="PUT", prefix=big.key)
    assert push(big, recorder).uploaded_bytes == SIZE
    assert len(part_puts(recorder, big.key)) == big.count + 1
    assert recorder.count(method="POST", prefix=big.key) == 2
    big.assert_published()


def test_what_failed_for_a_reason_that_may_pass_is_left_for_the_next_push(big: Big, recorder: Recorder) -> None:
    dam = Dam(recorder, big.key, 2)
    slow = Aside(big, recorder)
    dam.wait()
    recorder.answer(503, method=None, prefix=big.key, times=None, headers={"Retry-After": "0"})
    dam.open()
    with pytest.raises(OriginUnavailable):
        slow.end()
    assert [len(parts) for parts in big.unfinished().values()] == [2]
    assert big.names() == set()
    recorder.reset()
    assert push(big, recorder).uploaded_bytes == bytes_sent(part_puts(recorder, big.key))
    assert len(part_puts(recorder, big.key)) == big.count - 2
    big.assert_published()


def test_what_failed_for_good_is_aborted_and_ends_the_other_files_too(big: Big, recorder: Recorder) -> None:
    objects.write(big.folder, {"other.safetensors": objects.noise("other", SIZE)})
    recorder.answer(403, b"<Error><Code>AccessDenied</Code></Error>", method="PUT", prefix=big.key, times=None)
    with pytest.raises(AccessDenied):
        push(big, recorder)
    assert big.unfinished() == {}
    assert big.names() <= {f"blobs/sha256/{objects.Digest.of(objects.noise('other', SIZE)).hex}"}


def test_a_large_file_that_changes_while_it_is_pushed_leaves_nothing(big: Big, recorder: Recorder) -> None:
    dam = Dam(recorder, big.key, 1)
    slow = Aside(big, recorder)
    dam.wait()
    os.utime(big.folder / NAME, ns=(1, 1))
    dam.open()
    with pytest.raises(InvalidRequest, match=f"{NAME} changed"):
        slow.end()
    assert (big.names(), big.unfinished()) == (set(), {})


@pytest.mark.parametrize("size", [1_000, SMALL_BYTES + 1])
def test_a_file_that_is_cut_short_after_it_was_hashed_leaves_nothing(
    seaweedfs: SeaweedFS, recorder: Recorder, tmp_path: pathlib.Path, prefix: str, size: int
) -> None:
    big = Big.of(seaweedfs, tmp_path, prefix, size)
    recorder.before(lambda _: os.truncate(big.folder / NAME, 10), prefix=big.key, method="HEAD")
    with pytest.raises(InvalidRequest, match=f"{NAME} changed"):
        push(big, recorder)
    assert (big.names(), big.unfinished()) == (set(), {})


def test_a_file_that_goes_away_while_it_is_pushed_is_named(big: Big, recorder: Recorder) -> None:
    recorder.before(lambda _: os.unlink(big.folder / NAME), prefix=big.key, method="HEAD")
    with pytest.raises(InvalidRequest, match=f"{NAME} went away"):
        push(big, recorder)
    assert (big.names(), big.unfinished()) == (set(), {})


# ---- what is told


def test_progress_counts_bytes_as_they_go_and_a_rate_of_what_was_really_sent(big: Big, recorder: Recorder) -> None:
    big.begun({1: big.part(1), 2: big.part(2)}, Metadata={"sha256": big.digest.hex}, **LABELS)
    told: list[Progress] = []
    began = time.monotonic()
    push(big, recorder, on_progress=told.append)
    took = time.monotonic() - began
    assert told[0].bytes_done >= 2 * PART_BYTES
    assert all(a.bytes_done <= b.bytes_done for a, b in pairwise(told))
    assert (told[-1].bytes_done, told[-1].bytes_total, told[-1].files_done) == (SIZE, SIZE, 1)
    assert told[-1].rate_bytes_s > 0
    assert told[-1].rate_bytes_s * took >= SIZE - 2 * PART_BYTES
    assert told[0].rate_bytes_s == 0


# ---- pipelines


@pytest.fixture
def built(big: Big) -> Parcel:
    return Parcel(f"pipelines/{'0' * 64}", b"{}", objects.manifest_of({NAME: big.data}), lambda _: False)


def test_publishing_what_was_built_stops_amid_the_parts_and_goes_on_there(big: Big, recorder: Recorder, built: Parcel) -> None:
    stop = threading.Event()
    dam = Dam(recorder, big.key, 2)

    def stop_then_open() -> None:
        dam.wait()
        stop.set()
        dam.open()

    def go(stopped: threading.Event) -> bool:
        where = Source.parse(big.target)
        return publish_built(built, lambda _: str(big.folder / NAME), where, settings(big.origin, recorder), stopped.is_set)

    stopper = threading.Thread(target=stop_then_open)
    stopper.start()
    with pytest.raises(Stopped):
        go(stop)
    stopper.join()
    assert big.names() == set()
    (there,) = big.unfinished(whole=True).values()
    assert 2 <= len(there) < big.count
    recorder.reset()
    assert go(threading.Event())
    assert set(numbers(part_puts(recorder, big.key))) == set(range(1, big.count + 1)) - there
    assert {f"{built.name}.json", f"manifests/{built.tree.revision.hex}.json"} < big.names()
    assert big.unfinished() == {}
