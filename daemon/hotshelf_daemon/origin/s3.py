"""One bucket of an S3-compatible service through boto3, which is the control and the data plane.

The only module that imports boto3. Checksums are sent and expected `when_required` only: B2 and others refuse more.
Every ranged answer is held against what was asked: 206, the exact Content-Range, identity encoding, the same ETag.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import unquote, urlsplit

import boto3
import botocore
import botocore.loaders
import botocore.session
from botocore.config import Config
from botocore.exceptions import ClientError, ConnectionClosedError, ReadTimeoutError

from hotshelf_daemon.config import OriginSettings, Settings
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin import s3_body
from hotshelf_daemon.origin.answers import check_answer, strong
from hotshelf_daemon.origin.guard import guarded
from hotshelf_daemon.origin.port import Body, Changed
from hotshelf_daemon.origin.s3_body import Promise, streamed
from hotshelf_daemon.origin.s3_errors import EXPIRED, as_ours, translated
from hotshelf_daemon.origin.s3_get import Getter
from hotshelf_shared import __version__
from hotshelf_shared.errors import IntegrityError, OriginUnavailable, TooLarge

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")
MAX_LISTED = 200_000
#: What is said of a key that another has taken the place of.
_OTHER_KEY = frozenset({"InvalidAccessKeyId", "SignatureDoesNotMatch"})
#: Reads what S3's operations are, half a second of parsing, once for all clients.
_LOADER = botocore.loaders.create_loader()


def client_for(origin: OriginSettings, settings: Settings) -> S3Client:
    """A client that never retries by itself: retries are ours, bounded by the caller's deadline."""
    fetch = settings.fetch
    config = Config(
        signature_version=botocore.UNSIGNED if origin.unsigned else None,
        s3={"addressing_style": _addressing(origin)},
        retries={"total_max_attempts": 1},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        max_pool_connections=origin.max_connections + 4,
        connect_timeout=fetch.connect_timeout_s,
        read_timeout=fetch.idle_timeout_s,
        tcp_keepalive=True,
        user_agent=f"hotshelfd/{__version__}",  # botocore's own is put together anew for each request
    )
    library = botocore.session.Session()
    library.register_component("data_loader", _LOADER)
    library.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_unread)
    session = boto3.session.Session(
        botocore_session=library,
        aws_access_key_id=origin.access_key_id,
        aws_secret_access_key=origin.secret_access_key.get_secret_value() if origin.secret_access_key else None,
        aws_session_token=origin.session_token.get_secret_value() if origin.session_token else None,
        region_name=origin.region or (None if origin.endpoint_url is None else "us-east-1"),
    )
    client: S3Client = session.client("s3", endpoint_url=origin.endpoint_url, config=config, verify=origin.ca_bundle)
    if origin.endpoint_url is not None:
        client.meta.events.register("before-call.s3", _stay)
    return guarded(client)  # type: ignore[no-any-return]


def _unread(timestamp: str) -> str:
    """Nobody asks when an object was made; to parse it takes as long as to send a request."""
    return timestamp


def _stay(context: dict[str, Any], **_: object) -> None:
    """A redirect from a configured endpoint is no hint of another region of AWS, for which botocore would ask without end."""
    context.get("s3_redirect", {})["redirected"] = True


def _addressing(origin: OriginSettings) -> Any:
    """`auto` is path style for a bare host or IP (MinIO, SeaweedFS, moto), where virtual hosts cannot resolve."""
    if origin.addressing_style != "auto" or origin.endpoint_url is None:
        return origin.addressing_style
    host = re.sub(r"^https?://|[:/].*$", "", origin.endpoint_url)
    bare = "." not in host or host.replace(".", "").isdigit() or host.startswith("[")
    return "path" if bare else "auto"


class S3Origin:
    """`renew` makes a client with fresh credentials: once for each time that those in use turn out to have expired."""

    def __init__(self, client: S3Client, bucket: str, label: str, renew: Callable[[], S3Client] | None = None) -> None:
        self._client = client
        self._renew = renew
        self._renewing = threading.Lock()
        self._bucket = bucket
        self._getter = Getter(client, bucket)
        self.label = label
        self.name = f"{client.meta.endpoint_url}/{bucket}"

    def head(self, key: str) -> OriginObject | None:
        with translated(self.label, self._principal, f"s3://{self._bucket}/{key}"):
            try:
                answer = self._ask(lambda client: client.head_object(Bucket=self._bucket, Key=key))
            except ClientError as error:
                if _says_no_object(error, key):
                    return None
                raise
            where = f"s3://{self._bucket}/{key}"
            return OriginObject(key, int(answer["ContentLength"]), strong(answer.get("ETag", ""), where))

    def checksum(self, obj: OriginObject) -> Checksum | None:
        asked: Any = {"Key": obj.key, "IfMatch": obj.version, "ChecksumMode": "ENABLED"}
        with translated(self.label, self._principal, f"s3://{self._bucket}/{obj.key}"):
            answer = self._client.head_object(Bucket=self._bucket, **asked)  # not worth fresh credentials: a GET gets them
        kept = s3_body.kept_of_all(answer["ResponseMetadata"].get("HTTPHeaders", {}))
        return None if kept is None else Checksum.crc64nvme(kept)

    def list(self, folder: str) -> Iterator[OriginObject]:
        below = f"{folder}/" if folder else ""
        seen = 0
        with translated(self.label, self._principal, f"s3://{self._bucket}/{below}"):
            # botocore's paginator itself refuses a page token that repeats.
            for page in self._client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=below):
                for entry in page.get("Contents", ()):
                    seen += 1
                    if not entry["Key"].startswith(below):
                        raise IntegrityError(f"{self.label} listed {entry['Key']!r}, which is not below {below!r}")
                    if not entry["Key"].endswith("/"):
                        where = f"s3://{self._bucket}/{entry['Key']}"
                        yield OriginObject(entry["Key"], int(entry["Size"]), strong(entry.get("ETag", ""), where))
                if seen > MAX_LISTED:
                    raise TooLarge(f"more than {MAX_LISTED:,} keys below {below!r}", hint="Name a narrower folder.")

    def read(self, key: str, limit: int) -> bytes | None:
        with translated(self.label, self._principal, f"s3://{self._bucket}/{key}"):
            try:
                answer = self._ask(lambda client: client.get_object(Bucket=self._bucket, Key=key))
            except self._client.exceptions.NoSuchKey:
                return None
            with_body = answer["Body"]
            try:
                data = with_body.read(limit + 1)
            finally:
                with_body.close()
        if len(data) > limit:
            raise IntegrityError(f"s3://{self._bucket}/{key} is over {limit:,} bytes")
        if len(data) != answer.get("ContentLength", len(data)):
            raise OriginUnavailable(f"s3://{self._bucket}/{key} ended early")
        return data

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        where = f"s3://{self._bucket}/{obj.key}"
        whole = start == 0 and stop == obj.size
        wanted: dict[str, str] = {} if whole else {"Range": f"bytes={start}-{stop - 1}"}
        if obj.version:
            wanted["IfMatch"] = obj.version
        with translated(self.label, self._principal, where):
            try:
                answer = self._ask(lambda client: self._getter_of(client).get(obj.key, **wanted))
            except self._client.exceptions.NoSuchKey as error:
                raise Changed(f"{where} was listed and is not there", hint="Publish it again.") from error
        headers = answer["ResponseMetadata"].get("HTTPHeaders", {})
        promise = Promise.of(headers, obj.size) if whole else None
        body = streamed(answer["Body"], lambda error: as_ours(error, self.label, self._principal, where), promise)
        try:
            check_answer(answer, obj, start, stop, where)
            yield body
        finally:
            body.close()

    def _getter_of(self, client: S3Client) -> Getter:
        getter = self._getter
        if getter.client is not client:
            getter = Getter(client, self._bucket)
            if client is self._client:
                self._getter = getter
        return getter

    def _ask(self, request: Callable[[S3Client], T]) -> T:
        """Once more with fresh credentials when those in use have expired."""
        client = self._client
        try:
            return request(client)
        except (ConnectionClosedError, ReadTimeoutError):
            # A kept connection that died silently seldom died alone: the next request gets a new one.
            client._endpoint.http_session.close()  # type: ignore[attr-defined]
            raise
        except ClientError as error:
            # An answer to HEAD has no body that could name the reason.
            if self._renew is None or error.response.get("Error", {}).get("Code") not in EXPIRED | _OTHER_KEY | {"400", "403"}:
                raise
            with self._renewing:
                if self._client is client:
                    self._client = self._renew()
            return request(self._client)

    @property
    def _principal(self) -> str:
        credentials = self._client._request_signer._credentials  # type: ignore[attr-defined]
        return credentials.access_key if credentials is not None else "nobody (unsigned)"


def _says_no_object(error: ClientError, key: str) -> bool:
    """404, or what a static web server says of a folder: to ask for the same with a slash behind it."""
    answer: Any = error.response.get("ResponseMetadata", {})
    status, location = answer.get("HTTPStatusCode"), answer.get("HTTPHeaders", {}).get("location", "")
    return status == 404 or (status in (301, 302, 307, 308) and unquote(urlsplit(location).path).endswith(f"/{key}/"))


def bucket(settings: Settings, name: str) -> tuple[str, OriginSettings]:
    """Which configured origin serves this bucket: the one that lists it, the only one, or plain AWS."""
    for label, origin in settings.origins.items():
        if name in origin.buckets:
            return label, origin
    if len(settings.origins) == 1:
        return next(iter(settings.origins.items()))
    if settings.origins and all(origin.buckets for origin in settings.origins.values()):
        return "aws", OriginSettings()
    for label, origin in settings.origins.items():
        if not origin.buckets:
            return label, origin
    return "aws", OriginSettings()
