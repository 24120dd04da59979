"""What every S3 origin of the tests offers: an address, credentials, a boto3 client, and its block of configuration."""

from __future__ import annotations

import abc
import contextlib
import http.client
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, Self

import boto3
from botocore.config import Config

from tests.servers.child import StartFailed

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

REGION = "us-east-1"


def s3_client(endpoint_url: str, access_key_id: str, secret_access_key: str, *, read_timeout_s: float = 60) -> S3Client:
    """A boto3 client that tries once and adds no checksums of its own (other dialects refuse them)."""
    config = Config(
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},
        s3={"addressing_style": "path"},
        connect_timeout=5,
        read_timeout=read_timeout_s,
        proxies={},
    )
    return boto3.session.Session().client(
        "s3", endpoint_url=endpoint_url, region_name=REGION, aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key, config=config,
    )  # fmt: skip


class S3Origin(abc.ABC):
    """A server with one account, started on entry and killed at exit; `stop()` and `start()` keep the port."""

    access_key_id: str
    secret_access_key: str
    port: int

    @abc.abstractmethod
    def choose_ports(self) -> None: ...

    @abc.abstractmethod
    def start(self) -> None:
        """Returns when it answers. Raises StartFailed."""

    @abc.abstractmethod
    def stop(self) -> None:
        """Kills it hard: whoever is connected sees it end, whoever connects is refused."""

    def __enter__(self) -> Self:
        try:
            self.start()
        except StartFailed:  # a port may have been taken since it was chosen: once more, with others
            self.choose_ports()
            self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextlib.contextmanager
    def down(self) -> Iterator[None]:
        """Off for the length of the block."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @contextlib.contextmanager
    def client(self, **changes: Any) -> Iterator[S3Client]:
        """For this account; `endpoint_url`, `access_key_id` or `secret_access_key` replace its own. Closed at the end."""
        client = s3_client(**{**self._account(), **changes})
        try:
            yield client
        finally:
            client.close()

    def settings(self, *buckets: str, **changes: Any) -> dict[str, Any]:
        """The `origins:` entry that a daemon needs to read from here; `endpoint_url=recorder.endpoint_url` goes around."""
        return {**self._account(), "region": REGION, "buckets": list(buckets), "addressing_style": "path", **changes}

    def _account(self) -> dict[str, str]:
        return {
            "endpoint_url": self.endpoint_url,
            "access_key_id": self.access_key_id,
            "secret_access_key": self.secret_access_key,
        }

    def answers(self) -> bool:
        """Whether an unsigned request to it is answered as S3 answers one."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
        try:
            connection.request("GET", "/")
            return connection.getresponse().status in (200, 403)
        except http.client.HTTPException:
            return False
        finally:
            connection.close()
