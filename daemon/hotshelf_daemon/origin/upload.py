"""Writing to a bucket: `hotshelf push` and publishing do. Large files go in parallel parts, aborted when one fails."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from boto3.exceptions import S3UploadFailedError
from boto3.s3.transfer import TransferConfig
from botocore.exceptions import ClientError, HTTPClientError

from hotshelf_daemon.config import Settings
from hotshelf_daemon.origin import s3
from hotshelf_daemon.origin.s3_errors import translated
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import InvalidRequest, OriginUnavailable

_PARTS = TransferConfig(multipart_threshold=64 << 20, multipart_chunksize=32 << 20, max_concurrency=4)


class Upload:
    """One bucket, for writing. Every object carries its sha256 as metadata, which a later push believes only with its size."""

    def __init__(self, client: Any, bucket: str, label: str) -> None:
        self._client = client
        self._bucket = bucket
        self._label = label

    def digest_at(self, key: str, size: int) -> Digest | None:
        """The digest that the object under `key` was pushed with, when it has this size."""
        with self._translated(key):
            try:
                seen = self._client.head_object(Bucket=self._bucket, Key=key)
            except ClientError as error:
                if error.response.get("ResponseMetadata", {}).get("HTTPStatusCode") == 404:
                    return None
                raise
        try:
            return Digest.from_hex(seen["Metadata"].get("sha256", "")) if seen["ContentLength"] == size else None
        except InvalidRequest:
            return None

    def put(self, key: str, data: bytes, *, cache_control: str) -> None:
        with self._translated(key):
            self._client.put_object(
                Bucket=self._bucket, Key=key, Body=data, CacheControl=cache_control, ContentType="application/json"
            )

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

    def put_file(
        self, key: str, path: str, digest: Digest, *, cache_control: str, on_bytes: Callable[[int], None] | None = None
    ) -> None:
        """`on_bytes` hears of every piece that is sent; what it raises ends the upload."""
        extra = {"CacheControl": cache_control, "Metadata": {"sha256": digest.hex}}
        with self._translated(key):
            try:
                self._client.upload_file(path, self._bucket, key, ExtraArgs=extra, Config=_PARTS, Callback=on_bytes)
            except S3UploadFailedError as error:
                cause = error.__context__
                if isinstance(cause, ClientError | HTTPClientError):
                    raise cause from error
                raise OriginUnavailable(f"{self._label}: uploading {key} failed: {error}") from error

    def _translated(self, key: str) -> Any:
        credentials = self._client._request_signer._credentials
        principal = credentials.access_key if credentials is not None else "nobody (unsigned)"
        return translated(self._label, principal, f"s3://{self._bucket}/{key}", doing="write")


def upload_to(settings: Settings, bucket: str) -> Upload:
    label, origin = s3.bucket(settings, bucket)
    return Upload(s3.client_for(origin, settings), bucket, label)
