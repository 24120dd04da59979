"""One bucket of Google Cloud Storage: ``gs://BUCKET/PREFIX``. An object's version is its generation; reads are pinned to it.

Google's libraries, which the extra [gcs] installs, are loaded and credentials looked for when the first question is asked.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from hotshelf_daemon.config import Settings
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin.answers import check_answer
from hotshelf_daemon.origin.port import Body, Changed
from hotshelf_daemon.origin.s3 import MAX_LISTED
from hotshelf_daemon.origin.s3_body import streamed
from hotshelf_shared.errors import AccessDenied, BadConfiguration, IntegrityError, NotFound, OriginUnavailable, TooLarge

if TYPE_CHECKING:
    from hotshelf_daemon.origin.gcs_client import GcsClient

T = TypeVar("T")
Page = tuple[list[OriginObject], str | None]
_GOOGLE = "https://storage.googleapis.com"


def origin_of(bucket: str, settings: Settings) -> GcsOrigin:
    """Raises AccessDenied where an origin that requires signatures lies there too."""
    if needs_signatures(settings):
        hint = "Ask for it as s3://BUCKET/PREFIX: so its signature is checked."
        raise AccessDenied(f"gs://{bucket} lies at an origin that requires signatures", hint=hint)
    return GcsOrigin(bucket, settings)


def needs_signatures(settings: Settings) -> bool:
    """Cloud Storage speaks S3 too: a worker must not get past signatures by asking for the same bucket in its own tongue."""
    here = _place(settings.gcs.endpoint_url or _GOOGLE)
    return any(
        origin.verify == "required" and origin.endpoint_url is not None and _place(origin.endpoint_url) == here
        for origin in settings.origins.values()
    )


def _place(url: str) -> str:
    """The host; all of Google's hosts are one."""
    host = urlsplit(url).hostname or ""
    return "googleapis.com" if f".{host}".endswith((".googleapis.com", ".storage.cloud.google.com")) else host


class GcsOrigin:
    label = "gcs"

    def __init__(self, bucket: str, settings: Settings) -> None:
        self._bucket, self._settings = bucket, settings
        self.name = f"{(settings.gcs.endpoint_url or _GOOGLE).rstrip('/')}/storage/v1/b/{bucket}"
        self._client: GcsClient | None = None
        self._connecting = threading.Lock()

    def head(self, key: str) -> OriginObject | None:
        return self._ask(lambda client: client.head(key))

    def checksum(self, obj: OriginObject) -> Checksum | None:
        return obj.checksum

    def list(self, folder: str) -> Iterator[OriginObject]:
        below = f"{folder}/" if folder else ""
        seen, token = 0, None
        while True:
            page, following = self._page(below, token)
            for obj in page:
                if not obj.key.startswith(below):
                    raise IntegrityError(f"{self.label} listed {obj.key!r}, which is not below {below!r}")
                if not obj.key.endswith("/"):
                    yield obj
            seen += len(page) or 1  # pages without anything may go on for ever too
            if seen > MAX_LISTED:
                raise TooLarge(f"more than {MAX_LISTED:,} keys below {below!r}", hint="Name a narrower folder.")
            if following is None:
                return
            if following == token:
                raise IntegrityError(f"{self.label} lists {below!r} in circles", hint="The service's listing is broken.")
            token = following

    def _page(self, below: str, token: str | None) -> Page:
        try:
            return self._ask(lambda client: client.page(below, token))
        except NotFound as error:
            hint = "Check the bucket's name and the endpoint."
            raise NotFound(f"there is no bucket gs://{self._bucket} at {self.label}", hint=hint) from error

    def read(self, key: str, limit: int) -> bytes | None:
        where = f"gs://{self._bucket}/{key}"
        try:
            answer = self._ask(lambda client: client.get(key, {}))
        except NotFound:
            return None
        with self._streamed(answer, where) as body:
            _check_stored_as_is(answer, where)
            buffer = bytearray(min(limit, answer.get("ContentLength", limit)) + 1)
            at = 0
            while at < len(buffer) and (taken := body.readinto(memoryview(buffer)[at:])):
                at += taken
        if at > limit:
            raise IntegrityError(f"{where} is over {limit:,} bytes")
        if at != answer.get("ContentLength", at):
            raise OriginUnavailable(f"{where} ended early")
        return bytes(buffer[:at])

    @contextmanager
    def open(self, obj: OriginObject, start: int, stop: int) -> Iterator[Body]:
        where = f"gs://{self._bucket}/{obj.key}"
        whole = start == 0 and stop == obj.size
        wanted = {} if whole else {"Range": f"bytes={start}-{stop - 1}"}
        try:
            answer = self._ask(lambda client: client.get(obj.key, wanted, obj.version))
        except NotFound as error:
            raise Changed(f"{where} was listed and is not there", hint="Publish it again.") from error
        with self._streamed(answer, where) as body:
            _check_stored_as_is(answer, where)
            answer["ETag"] = _told(answer).get("x-goog-generation", obj.version)
            check_answer(answer, obj, start, stop, where)
            yield body

    @contextmanager
    def _streamed(self, answer: dict[str, Any], where: str) -> Iterator[Body]:
        client = self._connected()
        body = streamed(answer["Body"], lambda error: client.as_ours(error, where), None)
        try:
            yield body
        finally:
            body.close()

    def _ask(self, request: Callable[[GcsClient], T]) -> T:
        """Once more with fresh credentials, where those in use are refused and there may be others."""
        client = self._connected()
        try:
            return request(client)
        except AccessDenied:
            with self._connecting:
                if self._client is client:
                    if not client.may_know_better():
                        raise
                    self._client = _connect(self._bucket, self._settings)
            return request(self._connected())

    def _connected(self) -> GcsClient:
        if (client := self._client) is not None:
            return client
        with self._connecting:
            if self._client is None:
                self._client = _connect(self._bucket, self._settings)
            return self._client


def _connect(bucket: str, settings: Settings) -> GcsClient:
    """Raises BadConfiguration saying what to install, or what is wrong with the credentials."""
    try:
        from hotshelf_daemon.origin.gcs_client import GcsClient
    except ModuleNotFoundError as missing:
        what = "gs:// sources need google-cloud-storage, which is not installed"
        raise BadConfiguration(what, hint="pip install 'hotshelf[gcs]'") from missing
    return GcsClient(bucket, settings)


def _told(answer: dict[str, Any]) -> dict[str, str]:
    headers: dict[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
    return headers


def _check_stored_as_is(answer: dict[str, Any], where: str) -> None:
    """What is stored compressed is inflated on the way out, unasked, and then comes without its length or a range."""
    stored = _told(answer).get("x-goog-stored-content-encoding", "identity")
    if stored != "identity" or "ContentEncoding" in answer:
        encoding = answer.get("ContentEncoding", stored)
        raise IntegrityError(f"{where} is stored {encoding}-encoded", hint="Store weights without Content-Encoding.")
