"""Other clients that fetch the same objects: each in a fresh process, timed from its first request to synced files.

    python -m tests.bench.peers NAME < job.json

Libraries are imported before the clock starts, as a daemon's are. Programs are timed from their start. Every file is fsynced,
as ours are, and then read once more for its sha256, which is timed apart: `verified` is the sum of both.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.servers.child import clean_environment


@dataclass(frozen=True)
class Job:
    """`keys` of one bucket into `folder`, each under its last name. Without a `secret` requests are not signed.
    `ca_bundle` is whom to trust over TLS, by the variables that each program looks at."""

    endpoint_url: str
    bucket: str
    keys: Sequence[str]
    folder: str
    key_id: str = ""
    secret: str = ""
    ca_bundle: str = ""
    sizes: dict[str, int] = field(default_factory=dict)

    def url(self, key: str) -> str:
        return f"{self.endpoint_url}/{self.bucket}/{key}"

    def path(self, key: str) -> str:
        return f"{self.folder}/{key.rpartition('/')[2]}"

    @property
    def environment(self) -> dict[str, str]:
        signed = {"AWS_ACCESS_KEY_ID": self.key_id, "AWS_SECRET_ACCESS_KEY": self.secret} if self.secret else {}
        names = ("SSL_CERT_FILE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE") if self.ca_bundle else ()
        path = f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
        return clean_environment(AWS_REGION="us-east-1", PATH=path, **signed, **dict.fromkeys(names, self.ca_bundle))


@dataclass(frozen=True)
class Took:
    """Seconds and CPU-seconds of fetching and syncing, and of the sha256 of all files after it; `peak` memory in bytes."""

    seconds: float
    cpu: float
    hash_seconds: float = 0.0
    hash_cpu: float = 0.0
    peak: int = 0


class CannotDo(Exception):
    """This client has no way to fetch what it is asked for."""


#: What is to be timed; a peer imports what it needs before it returns this.
Fetch = Callable[[], object]


def s5cmd(job: Job) -> Fetch:
    argv = ["s5cmd", "--endpoint-url", job.endpoint_url, *([] if job.secret else ["--no-sign-request"]), "run"]
    lines = "".join(f"cp s3://{job.bucket}/{key} {job.path(key)}\n" for key in job.keys)
    return lambda: _program(job, argv, lines)


def runai(job: Job) -> Fetch:
    """It streams into memory: what it hands over is written, as anybody who is to keep it must."""
    from runai_model_streamer import FileChunks, FileStreamer
    from runai_model_streamer.s3_utils.s3_utils import S3Credentials

    names = {"RUNAI_STREAMER_S3_UNSIGNED": "0" if job.secret else "1", "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0"}
    os.environ.update(job.environment | names)
    signing = {"access_key_id": job.key_id, "secret_access_key": job.secret} if job.secret else {}
    credentials = S3Credentials(endpoint=job.endpoint_url, region_name="us-east-1", **signing)
    part = 16 << 20

    def fetch() -> None:
        wanted, fds = [], []
        for number, key in enumerate(job.keys):
            offsets = [*range(0, job.sizes[key], part)]
            sizes = [min(part, job.sizes[key] - offset) for offset in offsets]
            wanted.append(FileChunks(number, f"s3://{job.bucket}/{key}", offsets, sizes))
            fds.append(os.open(job.path(key), os.O_WRONLY | os.O_CREAT))
        with FileStreamer() as streamer:
            streamer.stream_files(wanted, credentials)
            for number, index, tensor in streamer.get_chunks():
                os.pwrite(fds[number], tensor.numpy(), index * part)

    return fetch


def aria2(job: Job) -> Fetch:
    if job.secret:
        raise CannotDo("aria2 does not sign")
    trusted = [f"--ca-certificate={job.ca_bundle}"] if job.ca_bundle else []
    argv = ["aria2c", "--quiet", *trusted, "-x16", "-s16", "-j8", "-k8M", "--file-allocation=falloc", "-i", "-"]
    lines = "".join(f"{job.url(key)}\n dir={job.folder}\n out={key.rpartition('/')[2]}\n" for key in job.keys)
    return lambda: _program(job, argv, lines)


def curl(job: Job) -> Fetch:
    if job.secret:
        raise CannotDo("curl is run without signing")
    argv = ["curl", "--silent", "--fail", "--parallel", "--parallel-max", "16"]
    for key in job.keys:
        argv += ["-o", job.path(key), job.url(key)]
    return lambda: _program(job, argv)


def rclone(job: Job) -> Fetch:
    remote = f":s3,provider=Other,endpoint='{job.endpoint_url}',env_auth={'true' if job.secret else 'false'}:{job.bucket}"
    argv = ["rclone", "copy", remote, job.folder, "--files-from-raw", "-", "--no-traverse", "--transfers", "16"]
    argv += ["--multi-thread-streams", "8", "--ignore-checksum", "--config", "/dev/null"]

    def fetch() -> None:
        _program(job, argv, "\n".join(job.keys))
        _flatten(job)

    return fetch


def _flatten(job: Job) -> None:
    """rclone keeps the folders of keys."""
    for key in job.keys:
        if "/" in key:
            os.rename(f"{job.folder}/{key}", job.path(key))


def boto3(job: Job) -> Fetch:
    import boto3
    import botocore
    from botocore.config import Config

    config = Config(
        signature_version=None if job.secret else botocore.UNSIGNED, s3={"addressing_style": "path"}, max_pool_connections=32,
        response_checksum_validation="when_required",
    )  # fmt: skip
    client = boto3.client("s3", endpoint_url=job.endpoint_url, region_name="us-east-1", config=config,
                          verify=job.ca_bundle or None, aws_access_key_id=job.key_id or None,
                          aws_secret_access_key=job.secret or None)  # fmt: skip

    def fetch() -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(lambda key: client.download_file(job.bucket, key, job.path(key)), job.keys))

    return fetch


def obstore(job: Job) -> Fetch:
    import obstore
    from obstore.store import S3Store

    signed: dict[str, Any] = (
        {"access_key_id": job.key_id, "secret_access_key": job.secret} if job.secret else {"skip_signature": True}
    )
    store = S3Store(job.bucket, endpoint=job.endpoint_url, region="us-east-1", virtual_hosted_style_request=False,
                    client_options={"allow_http": True}, **signed)  # fmt: skip
    part = 16 << 20

    def one(item: tuple[str, int, int]) -> None:
        key, start, stop = item
        data = obstore.get_range(store, key, start=start, end=stop)
        with open(job.path(key), "r+b", buffering=0) as file:
            os.pwrite(file.fileno(), data, start)

    def fetch() -> None:
        items = []
        for key in job.keys:
            with open(job.path(key), "wb") as file:
                file.truncate(job.sizes[key])
            items += [(key, at, min(at + part, job.sizes[key])) for at in range(0, job.sizes[key], part)]
        with ThreadPoolExecutor(8) as threads:
            list(threads.map(one, items))

    return fetch


def awscrt(job: Job) -> Fetch:
    if job.ca_bundle:
        raise CannotDo("awscrt is run without TLS")
    from awscrt.auth import AwsCredentialsProvider
    from awscrt.http import HttpHeaders, HttpRequest
    from awscrt.io import ClientBootstrap, DefaultHostResolver, EventLoopGroup
    from awscrt.s3 import S3Client, S3RequestTlsMode, S3RequestType, create_default_s3_signing_config

    bootstrap = ClientBootstrap(group := EventLoopGroup(), DefaultHostResolver(group))
    signing = None
    if job.secret:
        provider = AwsCredentialsProvider.new_static(job.key_id, job.secret)
        signing = create_default_s3_signing_config(region="us-east-1", credential_provider=provider)
    client = S3Client(bootstrap=bootstrap, region="us-east-1", signing_config=signing, tls_mode=S3RequestTlsMode.DISABLED,
                      throughput_target_gbps=20, part_size=16 << 20)  # fmt: skip
    host = job.endpoint_url.partition("://")[2]

    def fetch() -> None:
        running = [
            client.make_request(
                request=HttpRequest("GET", f"/{job.bucket}/{key}", HttpHeaders([("host", host)])),
                type=S3RequestType.GET_OBJECT, recv_filepath=job.path(key),
            )
            for key in job.keys
        ]  # fmt: skip
        for one in running:
            one.finished_future.result(600)

    return fetch


def hf_transfer(job: Job) -> Fetch:
    if job.secret or job.ca_bundle:
        raise CannotDo("hf_transfer neither signs nor takes certificates of one's own")
    import hf_transfer

    def one(key: str) -> None:
        hf_transfer.download(url=job.url(key), filename=job.path(key), max_files=16, chunk_size=10 << 20)

    def fetch() -> None:
        with ThreadPoolExecutor(4) as threads:
            list(threads.map(one, job.keys))

    return fetch


#: Before each contestant: what the one before had in memory is free by then, and on a virtual machine given back to its
#: host. To take it again costs more than to fetch; so all have to, and nobody who is quick to start is spared.
SETTLE_S = 4.0
PEERS: dict[str, Callable[[Job], Fetch]] = {
    one.__name__: one for one in (s5cmd, rclone, obstore, awscrt, aria2, boto3, hf_transfer, runai, curl)
}


def _program(job: Job, argv: list[str], stdin: str = "") -> None:
    done = subprocess.run(argv, input=stdin, text=True, env=job.environment, capture_output=True, cwd=job.folder)
    if done.returncode:
        raise SystemExit(f"{argv[0]}: {done.stderr[-2_000:] or done.stdout[-2_000:]}")


def _cpu() -> float:
    return sum(one.ru_utime + one.ru_stime for one in map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)))


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    os.fsync(fd)
    os.close(fd)


def _hash(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(name: str, job: Job) -> Took:
    fetch = PEERS[name](job)
    time.sleep(SETTLE_S)
    began, cpu = time.monotonic(), _cpu()
    fetch()
    paths = [job.path(key) for key in job.keys]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(_sync, paths))
    fetched, fetched_cpu = time.monotonic(), _cpu()
    with ThreadPoolExecutor(os.cpu_count()) as threads:  # kinder to them than a user's `sha256sum *`
        list(threads.map(_hash, paths))
    hashed, hashed_cpu = time.monotonic(), _cpu()
    if any(os.path.getsize(path) != job.sizes[key] for path, key in zip(paths, job.keys, strict=True)):
        raise SystemExit(f"{name} brought something else")
    return Took(fetched - began, fetched_cpu - cpu, hashed - fetched, hashed_cpu - fetched_cpu)


def measure(name: str, job: Job) -> Took | None:
    """In a process of its own, into a new folder; None when this peer cannot do this job, or is not installed."""
    folder = pathlib.Path(job.folder)
    folder.mkdir(parents=True)
    done = subprocess.run(
        [sys.executable, "-m", "tests.bench.peers", name], input=json.dumps(asdict(job)), text=True,
        capture_output=True, env=clean_environment(**({"SSL_CERT_FILE": job.ca_bundle} if job.ca_bundle else {})), timeout=600,
    )  # fmt: skip
    if done.returncode:
        print(f"   {name}: left out: {(done.stderr.strip().splitlines() or ['?'])[-1]}", file=sys.stderr)
        return None
    return Took(**json.loads(done.stdout))


if __name__ == "__main__":
    print(json.dumps(asdict(run(sys.argv[1], Job(**json.load(sys.stdin))))))
