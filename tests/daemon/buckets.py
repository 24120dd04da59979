"""What lies below a prefix of the tests' bucket, as whoever has its credentials sees and changes it."""

from __future__ import annotations

from tests.conftest import BUCKET
from tests.servers.seaweedfs import SeaweedFS


def keys(seaweedfs: SeaweedFS, below: str) -> list[str]:
    with seaweedfs.client() as client:
        pages = client.get_paginator("list_objects_v2").paginate(Bucket=BUCKET, Prefix=below)
        return sorted(entry["Key"].removeprefix(below) for page in pages for entry in page.get("Contents", ()))


def read(seaweedfs: SeaweedFS, key: str) -> bytes:
    with seaweedfs.client() as client:
        return client.get_object(Bucket=BUCKET, Key=key)["Body"].read()


def write(seaweedfs: SeaweedFS, key: str, data: bytes) -> None:
    with seaweedfs.client() as client:
        client.put_object(Bucket=BUCKET, Key=key, Body=data)
