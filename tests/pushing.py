"""What tests of pushing stand on: a file of several parts, what a bucket holds of it, and PUTs that stop where a test wants."""

from __future__ import annotations

import pathlib
import threading
from dataclasses import dataclass
from typing import Any

from hotshelf_daemon.config import Settings
from hotshelf_daemon.origin.outgoing import PART_BYTES
from tests import objects
from tests.conftest import BUCKET
from tests.servers.faults import Exchange
from tests.servers.recorder import Recorder
from tests.servers.s3 import S3Origin

NAME = "big.safetensors"


def settings(origin: S3Origin, recorder: Recorder) -> Settings:
    return Settings.model_validate({"origins": {"it": origin.settings(BUCKET, endpoint_url=recorder.endpoint_url)}})


@dataclass(frozen=True)
class Big:
    """A file to push as the only one of a folder, and its blob below a prefix of a bucket."""

    origin: S3Origin
    folder: pathlib.Path
    prefix: str
    data: bytes

    @classmethod
    def of(cls, origin: S3Origin, tmp_path: pathlib.Path, prefix: str, size: int) -> Big:
        data = objects.noise(prefix, size)
        return cls(origin, objects.write(tmp_path / "model", {NAME: data}), prefix, data)

    @property
    def target(self) -> str:
        return f"s3://{BUCKET}/{self.prefix}"

    @property
    def digest(self) -> objects.Digest:
        return objects.Digest.of(self.data)

    @property
    def key(self) -> str:
        return f"{self.prefix}/blobs/sha256/{self.digest.hex}"

    def part(self, number: int) -> bytes:
        return self.data[(number - 1) * PART_BYTES : number * PART_BYTES]

    @property
    def count(self) -> int:
        return -(-len(self.data) // PART_BYTES)

    def begun(self, parts: dict[int, bytes], **labels: Any) -> str:
        """An unfinished upload of the blob that holds these parts."""
        with self.origin.client() as client:
            upload = client.create_multipart_upload(Bucket=BUCKET, Key=self.key, **labels)["UploadId"]
            for number, data in parts.items():
                client.upload_part(Bucket=BUCKET, Key=self.key, UploadId=upload, PartNumber=number, Body=data)
        return upload

    def unfinished(self, *, whole: bool = False) -> dict[str, set[int]]:
        """Uploads of the blob that are open: which parts each holds, or holds `whole`: SeaweedFS keeps what was cut off too."""
        with self.origin.client() as client:
            uploads = client.list_multipart_uploads(Bucket=BUCKET, Prefix=self.key).get("Uploads", [])
            ids = [one["UploadId"] for one in uploads if one["Key"] == self.key]
            return {
                one: {
                    part["PartNumber"]
                    for part in client.list_parts(Bucket=BUCKET, Key=self.key, UploadId=one).get("Parts", [])
                    if not whole or part["Size"] == len(self.part(part["PartNumber"]))
                }
                for one in ids
            }

    def names(self) -> set[str]:
        """The keys below the prefix."""
        with self.origin.client() as client:
            listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{self.prefix}/").get("Contents", [])
        return {one["Key"].removeprefix(f"{self.prefix}/") for one in listed}

    def assert_published(self) -> None:
        """Blob, manifest and pointer are there, as they must be, and nothing else is begun."""
        with self.origin.client() as client:
            there = client.get_object(Bucket=BUCKET, Key=self.key)
            assert objects.Digest.of(there["Body"].read()) == self.digest
        assert there["Metadata"] == {"sha256": self.digest.hex}
        assert there["CacheControl"] == "public, max-age=31536000, immutable"
        revision = objects.manifest_of({NAME: self.data}).revision
        assert self.names() >= {f"blobs/sha256/{self.digest.hex}", f"manifests/{revision.hex}.json", "hotshelf.json"}
        assert self.unfinished() == {}


def part_puts(recorder: Recorder, key: str) -> list[Exchange]:
    return [one for one in recorder.matching(method="PUT", prefix=key) if "partNumber" in one.query]


def numbers(puts: list[Exchange]) -> list[int]:
    return sorted(int(one.query["partNumber"]) for one in puts)


def bytes_sent(puts: list[Exchange]) -> int:
    return sum(int(one.headers["content-length"]) for one in puts if one.status == 200)


class Dam:
    """Lets so many PUTs of parts through a recorder, and holds the others until `open`."""

    def __init__(self, recorder: Recorder, key: str, through: int) -> None:
        self._lock, self._left, self._open = threading.Lock(), through, threading.Event()
        self._recorder, self._key, self._through = recorder, key, through
        recorder.before(self._hold, prefix=key, method="PUT", times=None)

    def _hold(self, _: Exchange) -> None:
        with self._lock:
            self._left -= 1
            passes = self._left >= 0
        if not passes:
            assert self._open.wait(120)

    def wait(self) -> None:
        """Until all that may pass has arrived, and something is held."""
        self._recorder.wait_until(self._is_full, timeout_s=60)

    def _is_full(self, recorder: Recorder) -> bool:
        puts = part_puts(recorder, self._key)
        return len(puts) > self._through and sum(one.status == 200 for one in puts) == self._through

    def open(self) -> None:
        self._open.set()
