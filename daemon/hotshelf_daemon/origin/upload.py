"""Writing to a bucket, one request a method: objects, and the multipart uploads that make large ones.

Checksums are asked for (CRC64NVME, which some services keep of every object) and never sent: B2 and others refuse them.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from botocore.exceptions import ClientError

from hotshelf_daemon.config import Settings
from hotshelf_daemon.origin import s3
from hotshelf_daemon.origin.outgoing import OutgoingBody, StoredPart, body_leaves
from hotshelf_daemon.origin.s3_errors import translated
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest, OriginUnavailable

#: Requests with bytes of one push at once, if the origin's `max_connections` allows.
AT_ONCE = 8
_UPLOAD_GONE = ("NoSuchUpload", "InvalidPart", "InvalidPartOrder")


class Gone(OriginUnavailable):
    """The multipart upload is no more, or not as it was: somebody else completed, aborted or changed it."""


@dataclass(frozen=True, slots=True)
class Stored:
    """What the origin says of an object: its bytes, the digest that it was pushed with, its CRC64NVME."""

    size: int
    digest: Digest | None
    crc64nvme: int | None


class Upload:
    """One bucket, for writing. Every file carries its sha256 as metadata."""

    def __init__(self, client: Any, bucket: str, label: str, at_once: int) -> None:
        client.meta.events.register_last("request-created.s3", body_leaves)
        self._client = client
        self._bucket = bucket
        self._label = label
        self._asks_checksums = True
        self.at_once = at_once

    # ---- objects

    def stored(self, key: str) -> Stored | None:
        """What is under `key` now."""
        with self._translated(key):
            try:
                seen = self._head(key)
            except ClientError as error:
                if _status(error) == 404:
                    return None
                raise
        try:
            digest = Digest.from_hex(seen["Metadata"].get("sha256", ""))
        except InvalidRequest:
            digest = None
        return Stored(seen["ContentLength"], digest, _crc64nvme(seen))

    def _head(self, key: str) -> Any:
        if self._asks_checksums:
            try:
                return self._client.head_object(Bucket=self._bucket, Key=key, ChecksumMode="ENABLED")
            except ClientError as error:
                if _status(error) not in (400, 403, 501):
                    raise
                self._asks_checksums = False  # B2 refuses the header, AWS where the KMS key may not be used
        return self._client.head_object(Bucket=self._bucket, Key=key)

    def put(self, key: str, data: bytes, *, cache_control: str) -> None:
        """A document."""
        with self._translated(key):
            self._client.put_object(
                Bucket=self._bucket, Key=key, Body=data, CacheControl=cache_control, ContentType="application/json"
            )

    def put_whole(self, key: str, body: OutgoingBody, digest: Digest, *, cache_control: str) -> None:
        """A file in one request. Raises what reading `body` raises, too."""
        with self._reading(body), self._translated(key):
            self._client.put_object(Bucket=self._bucket, Key=key, Body=body, **_labels(digest, cache_control))

    def read(self, key: str, limit: int) -> bytes | None:
        """A small object whole, its first `limit` bytes at the most; None when there is none."""
        with self._translated(key):
            try:
                body = self._client.get_object(Bucket=self._bucket, Key=key)["Body"]
            except self._client.exceptions.NoSuchKey:
                return None
            try:
                return bytes(body.read(limit))
            finally:
                body.close()

    # ---- multipart uploads: each method of an upload raises Gone when it is no more

    def unfinished(self, key: str) -> list[str]:
        """The uploads of exactly this key, newest first; a page of them at the most."""
        with self._translated(key):
            page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
            found = [one for one in page.get("Uploads", ()) if one["Key"] == key]
            return [one["UploadId"] for one in sorted(found, key=lambda one: one["Initiated"], reverse=True)]

    def parts(self, key: str, upload: str) -> list[StoredPart]:
        with self._translated(key, of_upload=True):
            pages = self._client.get_paginator("list_parts").paginate(Bucket=self._bucket, Key=key, UploadId=upload)
            return [
                StoredPart(part["PartNumber"], part["Size"], part["ETag"], _crc64nvme(part))
                for page in pages
                for part in page.get("Parts", ())
            ]

    def begin(self, key: str, digest: Digest, *, cache_control: str) -> str:
        """The id of a new upload."""
        with self._translated(key):
            labels = _labels(digest, cache_control)
            return str(self._client.create_multipart_upload(Bucket=self._bucket, Key=key, **labels)["UploadId"])

    def put_part(self, key: str, upload: str, number: int, body: OutgoingBody) -> str:
        """Its ETag. Raises what reading `body` raises, too."""
        with self._reading(body), self._translated(key, of_upload=True):
            answer = self._client.upload_part(Bucket=self._bucket, Key=key, UploadId=upload, PartNumber=number, Body=body)
            return str(answer["ETag"])

    def complete(self, key: str, upload: str, etags: Mapping[int, str]) -> None:
        parts = [{"PartNumber": number, "ETag": etags[number]} for number in sorted(etags)]
        with self._translated(key, of_upload=True):
            self._client.complete_multipart_upload(
                Bucket=self._bucket, Key=key, UploadId=upload, MultipartUpload={"Parts": parts}
            )

    def abort(self, key: str, upload: str) -> None:
        with self._translated(key, of_upload=True):
            self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=upload)

    @contextmanager
    def _reading(self, body: OutgoingBody) -> Iterator[None]:
        try:
            yield
        except Exception:
            if body.error is not None:
                raise body.error from None
            raise

    @contextmanager
    def _translated(self, key: str, *, of_upload: bool = False) -> Iterator[None]:
        credentials = self._client._request_signer._credentials
        principal = credentials.access_key if credentials is not None else "nobody (unsigned)"
        with translated(self._label, principal, f"s3://{self._bucket}/{key}", doing="write"):
            try:
                yield
            except ClientError as error:
                if of_upload and error.response.get("Error", {}).get("Code") in _UPLOAD_GONE:
                    raise Gone(f"the upload of s3://{self._bucket}/{key} was ended by somebody else") from error
                raise


def _labels(digest: Digest, cache_control: str) -> dict[str, Any]:
    return {"CacheControl": cache_control, "Metadata": {"sha256": digest.hex}}


def _crc64nvme(answer: Mapping[str, Any]) -> int | None:
    """Of the whole object or part: this checksum is never a composite one."""
    try:
        return int.from_bytes(base64.b64decode(answer["ChecksumCRC64NVME"], validate=True), "big")
    except (KeyError, ValueError):
        return None


def _status(error: ClientError) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def upload_to(settings: Settings, bucket: str) -> Upload:
    label, origin = s3.bucket(settings, bucket)
    return Upload(s3.client_for(origin, settings), bucket, label, min(AT_ONCE, origin.max_connections))
