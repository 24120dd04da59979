"""An S3 service that refuses, stumbles or cheats: each becomes a typed error, and never wrong bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from awscrt.checksums import crc64nvme

from hotshelf_daemon.config import Settings
from hotshelf_daemon.config.settings import OriginSettings
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin import Changed, s3
from hotshelf_shared.errors import AccessDenied, HotshelfError, IntegrityError, NotFound, OriginUnavailable
from tests import objects
from tests.daemon.origins.worlds import s3_origin
from tests.servers.http_stream import Head
from tests.servers.moto import Moto
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

DATA = objects.noise("s3", 10_000)
SECRET = "certainly-not-this-one"


@pytest.fixture
def origin(seaweedfs: SeaweedFS, recorder: Recorder, bucket: str) -> s3.S3Origin:
    return s3_origin(seaweedfs, bucket, endpoint_url=recorder.endpoint_url)


@pytest.fixture(params=["first", "later"])
def stored(request: pytest.FixtureRequest, seaweedfs: SeaweedFS, origin: s3.S3Origin, bucket: str, prefix: str) -> OriginObject:
    """An object to ask for, by the origin's first GET and by a later one, which goes another way."""
    objects.put(seaweedfs, bucket, prefix, {"a": DATA})
    seen = origin.head(f"{prefix}/a")
    assert seen is not None
    if request.param == "later":
        assert read(origin, seen) == DATA[100:200]
    return seen


def read(origin: s3.S3Origin, obj: OriginObject, start: int = 100, stop: int = 200) -> bytes:
    buffer, data = memoryview(bytearray(stop - start)), b""
    with origin.open(obj, start, stop) as body:
        while taken := body.readinto(buffer):
            data += buffer[:taken]
    return data


# ---- who may


@pytest.mark.parametrize(
    "ask",
    [
        lambda origin, key: origin.read(key, 10),
        lambda origin, key: [*origin.list(key)],
        lambda origin, key: origin.open(OriginObject(key, 3, '"x"'), 0, 3).__enter__(),
        lambda origin, key: origin.head(key),
    ],
    ids=["read", "list", "open", "head"],
)
def test_a_wrong_secret_names_the_key_id_and_never_the_secret(
    seaweedfs: SeaweedFS, bucket: str, prefix: str, ask: Callable[[s3.S3Origin, str], object]
) -> None:
    objects.put(seaweedfs, bucket, prefix, {"a": b"abc"})
    with pytest.raises(AccessDenied) as refusal:
        ask(s3_origin(seaweedfs, bucket, secret_access_key=SECRET), f"{prefix}/a")
    assert seaweedfs.access_key_id in refusal.value.message
    assert SECRET not in repr(refusal.value.to_problem())


def test_an_unknown_key_id_is_denied(seaweedfs: SeaweedFS, bucket: str) -> None:
    with pytest.raises(AccessDenied, match="nobody-we-know"):
        s3_origin(seaweedfs, bucket, access_key_id="nobody-we-know").read("a", 10)


def test_not_signing_where_one_must_is_denied(seaweedfs: SeaweedFS, bucket: str) -> None:
    origin = s3_origin(seaweedfs, bucket, unsigned=True, without=("access_key_id", "secret_access_key"))
    with pytest.raises(AccessDenied, match="unsigned"):
        origin.read("a", 10)


def test_a_session_token_is_sent(moto: Moto, bucket: str) -> None:
    with Recorder(moto.endpoint_url) as recorder:
        s3_origin(moto, bucket, session_token="the-token", endpoint_url=recorder.endpoint_url).head("none")
        assert recorder.requests[-1].headers["x-amz-security-token"] == "the-token"


def test_the_checksum_that_the_service_keeps_is_told(moto: Moto, bucket: str, prefix: str) -> None:
    with moto.client() as client:
        client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"weights", ChecksumAlgorithm="CRC64NVME")
    origin = s3_origin(moto, bucket)
    seen = origin.head(f"{prefix}/a")
    assert seen is not None
    assert origin.checksum(seen) == Checksum.crc64nvme(crc64nvme(b"weights"))
    with pytest.raises(Changed):
        origin.checksum(dataclasses.replace(seen, version='"another"'))


def test_a_missing_bucket_is_not_found(seaweedfs: SeaweedFS) -> None:
    origin = s3_origin(seaweedfs, "no-such-bucket")
    for ask in (lambda: origin.read("a", 10), lambda: [*origin.list("a")]):
        with pytest.raises(NotFound, match="no bucket"):
            ask()


# ---- answers that are not what was asked for


def amended(name: str, value: str | None) -> Callable[[Head], None]:
    return lambda head: head.set(name, value)


def status(code: str) -> Callable[[Head], None]:
    def act(head: Head) -> None:
        head.first[1] = code

    return act


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (amended("Content-Range", "bytes 101-200/10000"), IntegrityError),
        (amended("Content-Range", None), IntegrityError),
        (amended("Content-Range", "bytes 100-199/20000"), Changed),
        (amended("Content-Encoding", "gzip"), IntegrityError),
        (amended("ETag", '"another"'), Changed),
        (status("200"), IntegrityError),
    ],
    ids=["another range", "no range", "another total", "gzip", "another version", "200 to a Range"],
)
def test_a_range_answered_with_anything_else_is_refused(
    origin: s3.S3Origin, stored: OriginObject, recorder: Recorder, act: Callable[[Head], None], error: type[HotshelfError]
) -> None:
    assert read(origin, stored) == DATA[100:200]
    recorder.amend(act)
    with pytest.raises(error):
        read(origin, stored)


def test_a_whole_object_where_a_range_was_asked_for_is_refused(
    origin: s3.S3Origin, stored: OriginObject, recorder: Recorder
) -> None:
    recorder.answer(200, DATA, headers={"ETag": stored.version})
    with pytest.raises(IntegrityError, match="asked for 100 bytes"):
        read(origin, stored)


@pytest.mark.parametrize("code", [412, 416])
def test_a_failed_precondition_means_it_changed(
    origin: s3.S3Origin, stored: OriginObject, recorder: Recorder, code: int
) -> None:
    recorder.answer(code, b"")
    with pytest.raises(Changed):
        read(origin, stored)


@pytest.mark.parametrize("code", [429, 500, 502, 503, 504])
def test_a_busy_service_is_worth_a_retry_and_says_when(
    origin: s3.S3Origin, stored: OriginObject, recorder: Recorder, code: int
) -> None:
    recorder.answer(code, headers={"Retry-After": "7"})
    with pytest.raises(OriginUnavailable) as failure:
        read(origin, stored)
    assert failure.value.retryable
    assert failure.value.retry_after_s == 7


@pytest.mark.parametrize("code", [301, 302, 307, 308])
def test_a_redirect_to_another_host_is_not_followed(
    origin: s3.S3Origin, stored: OriginObject, recorder: Recorder, seaweedfs: SeaweedFS, code: int
) -> None:
    with Recorder(seaweedfs.endpoint_url) as elsewhere:
        recorder.answer(code, b"", headers={"Location": f"{elsewhere.endpoint_url}/weights/{stored.key}"}, times=None)
        with pytest.raises(HotshelfError):
            read(origin, stored)
        assert elsewhere.requests == []


def test_a_connection_that_breaks_half_way_is_unavailable(
    origin: s3.S3Origin, stored: OriginObject, recorder: Recorder
) -> None:
    recorder.cut(after_bytes=50)
    with pytest.raises(OriginUnavailable):
        read(origin, stored, 0, 10_000)


def test_an_error_in_the_service_s_own_words_becomes_ours(
    origin: s3.S3Origin, stored: OriginObject, recorder: Recorder
) -> None:
    recorder.answer(400, b"<Error><Code>InvalidRange</Code></Error>", times=None)
    with pytest.raises(IntegrityError):
        read(origin, stored)


def test_a_wrong_clock_is_named_as_the_reason(origin: s3.S3Origin, stored: OriginObject, recorder: Recorder) -> None:
    body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>no</Message></Error>"
    recorder.answer(403, body, headers={"Date": "Sat, 21 Nov 2026 01:02:03 GMT"})
    with pytest.raises(OriginUnavailable, match=r"here .*01:02:03"):
        read(origin, stored)


def test_html_from_a_proxy_in_between_is_unavailable_or_wrong_but_never_bytes(
    origin: s3.S3Origin, stored: OriginObject, recorder: Recorder
) -> None:
    recorder.answer(407, b"<html>proxy authentication required</html>", headers={"Content-Type": "text/html"})
    with pytest.raises(HotshelfError):
        read(origin, stored)


# ---- which origin serves a bucket


def settings(**origins: dict[str, object]) -> Settings:
    return Settings.model_validate({"origins": origins})


def test_a_bucket_goes_to_the_origin_that_lists_it() -> None:
    found = settings(one={"buckets": ["a"]}, two={"buckets": ["b"]})
    assert s3.bucket(found, "b")[0] == "two"


def test_a_bucket_that_no_origin_lists_goes_to_the_only_one() -> None:
    assert s3.bucket(settings(one={"buckets": ["a"]}), "b")[0] == "one"


def test_a_bucket_that_no_origin_lists_goes_to_plain_aws() -> None:
    label, origin = s3.bucket(settings(one={"buckets": ["a"]}, two={"buckets": ["b"]}), "c")
    assert (label, origin) == ("aws", OriginSettings())
    assert s3.bucket(settings(), "c")[0] == "aws"


@pytest.mark.parametrize(
    ("endpoint", "style", "virtual"),
    [
        ("http://127.0.0.1:9000", "auto", False),
        ("http://minio:9000", "auto", False),
        ("https://s3.us-east-005.backblazeb2.com", "virtual", True),
        ("https://s3.us-east-005.backblazeb2.com", "path", False),
        ("http://s3.localhost:9000", "virtual", True),
    ],
)
def test_addressing_follows_the_endpoint_unless_it_is_set(endpoint: str, style: str, virtual: bool) -> None:
    given = OriginSettings.model_validate(
        {"endpoint_url": endpoint, "addressing_style": style, "region": "us-east-005", "access_key_id": "k",
         "secret_access_key": "s"}
    )  # fmt: skip
    client = s3.client_for(given, Settings())
    url = client.generate_presigned_url("get_object", Params={"Bucket": "weights", "Key": "m/a"})
    assert ("//weights." in url) == virtual


def test_two_buckets_and_two_services_have_different_names(seaweedfs: SeaweedFS, moto: Moto) -> None:
    names = {s3_origin(server, bucket).name for server in (seaweedfs, moto) for bucket in ("one", "two")}
    assert len(names) == 4


def test_a_later_get_asks_for_the_same_as_the_first(origin: s3.S3Origin, stored: OriginObject, recorder: Recorder) -> None:
    """Only what an SDK tells about itself is missing."""
    for _ in range(2):
        read(origin, stored)
    first, *_, later = (request for request in recorder.requests if request.method == "GET")
    assert (later.target, later.headers["range"]) == (first.target, "bytes=100-199")
    assert first.headers.keys() - later.headers.keys() <= {"amz-sdk-invocation-id", "amz-sdk-request"}
    assert later.headers.keys() <= first.headers.keys()
    scope = [request.headers["authorization"].partition(", SignedHeaders")[0] for request in (first, later)]
    assert scope[0] == scope[1]


def test_a_signature_for_another_region_is_made_anew(origin: s3.S3Origin, stored: OriginObject, recorder: Recorder) -> None:
    read(origin, stored)
    recorder.answer(400, b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>")
    assert read(origin, stored) == DATA[100:200]
