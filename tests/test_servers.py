"""The servers that the other tests stand on do what those tests rely on."""

from __future__ import annotations

import contextlib
import hashlib
import json
import pathlib
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
from botocore.exceptions import ClientError, ConnectionClosedError, EndpointConnectionError, HTTPClientError

from tests import objects
from tests.servers.child import Child, StartFailed, clean_environment
from tests.servers.hub import Hub
from tests.servers.moto import Moto
from tests.servers.nginx import Nginx
from tests.servers.recorder import Recorder
from tests.servers.seaweedfs import SeaweedFS

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client


@pytest.fixture
def client(seaweedfs: SeaweedFS, recorder: Recorder) -> Iterator[S3Client]:
    """Signed, to SeaweedFS, through the recorder."""
    with seaweedfs.client(endpoint_url=recorder.endpoint_url) as client:
        yield client


def get(client: S3Client, bucket: str, key: str, **more: str) -> bytes:
    return client.get_object(Bucket=bucket, Key=key, **more)["Body"].read()  # type: ignore[arg-type]


def code(refused: pytest.ExceptionInfo[ClientError]) -> str:
    return refused.value.response["Error"]["Code"]


# ---- the origins


def test_seaweedfs_answers_a_range_with_exactly_those_bytes(seaweedfs: SeaweedFS, bucket: str, prefix: str) -> None:
    data = objects.noise(1, 300_000)
    with seaweedfs.client() as client:
        client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=data)
        answer = client.get_object(Bucket=bucket, Key=f"{prefix}/a", Range="bytes=100000-199999")
        assert answer["ContentRange"] == "bytes 100000-199999/300000"
        assert answer["Body"].read() == data[100_000:200_000]


def test_seaweedfs_refuses_to_read_another_version_than_asked_for(seaweedfs: SeaweedFS, bucket: str, prefix: str) -> None:
    with seaweedfs.client() as client:
        etag = client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"one")["ETag"]
        client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"two")
        with pytest.raises(ClientError) as refused:
            get(client, bucket, f"{prefix}/a", IfMatch=etag)
    assert code(refused) in ("PreconditionFailed", "412")


def test_seaweedfs_refuses_a_wrong_secret(seaweedfs: SeaweedFS, bucket: str) -> None:
    with seaweedfs.client(secret_access_key="wrong") as client, pytest.raises(ClientError) as refused:
        client.list_objects_v2(Bucket=bucket)
    assert code(refused) == "SignatureDoesNotMatch"


def test_seaweedfs_refuses_who_does_not_sign(seaweedfs: SeaweedFS, bucket: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{seaweedfs.endpoint_url}/{bucket}/?list-type=2", timeout=10)
    with refused.value as answer:
        assert answer.code == 403


def test_seaweedfs_keeps_address_and_objects_over_a_stop(tmp_path: pathlib.Path) -> None:
    with SeaweedFS(tmp_path) as origin, origin.client() as client:
        client.create_bucket(Bucket="kept")
        client.put_object(Bucket="kept", Key="a", Body=b"still here")
        with origin.down(), pytest.raises((EndpointConnectionError, ConnectionClosedError)):
            get(client, "kept", "a")
        assert get(client, "kept", "a") == b"still here"


def test_moto_serves_what_was_put_there(moto: Moto, bucket: str, prefix: str) -> None:
    tree = objects.model(1)
    objects.put(moto, bucket, prefix, tree)
    with moto.client() as client:
        listed = {
            entry["Key"]: entry["Size"] for entry in client.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]
        }
        assert listed == {f"{prefix}/{path}": len(data) for path, data in tree.items()}
        assert get(client, bucket, f"{prefix}/model_index.json", Range="bytes=2-5") == tree["model_index.json"][2:6]


@pytest.mark.needs("nginx")
def test_nginx_serves_ranges_of_a_folder(nginx: Nginx) -> None:
    data = objects.noise(1, 100_000)
    objects.write(nginx.root, {"bucket/a": data})
    asked = urllib.request.Request(f"{nginx.endpoint_url}/bucket/a", headers={"Range": "bytes=10-19"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        assert (answer.status, answer.read()) == (206, data[10:20])


def test_a_server_that_does_not_come_up_fails_the_test_with_its_log(tmp_path: pathlib.Path) -> None:
    child = Child(["sh", "-c", "echo out of cheese; exit 3"], log=tmp_path / "log", env=clean_environment())
    with pytest.raises(StartFailed, match=r"(?s)ended with status 3.*out of cheese"):
        child.wait_ready(lambda: False, timeout_s=10)


# ---- the recorder


def test_signatures_survive_the_recorder(client: S3Client, bucket: str, prefix: str) -> None:
    client.put_object(Bucket=bucket, Key=f"{prefix}/ä b+c", Body=b"signed")
    assert get(client, bucket, f"{prefix}/ä b+c") == b"signed"


def test_a_wrong_secret_is_refused_through_the_recorder(seaweedfs: SeaweedFS, recorder: Recorder, bucket: str) -> None:
    with (
        seaweedfs.client(endpoint_url=recorder.endpoint_url, secret_access_key="wrong") as client,
        pytest.raises(ClientError) as refused,
    ):
        client.put_object(Bucket=bucket, Key="a", Body=b"x" * 100_000)
    assert code(refused) == "SignatureDoesNotMatch"


def test_the_recorder_counts_requests_and_every_byte_sent(
    client: S3Client, recorder: Recorder, bucket: str, prefix: str
) -> None:
    tree = {"a/one": objects.noise(1, 1_234_567), "a/two": objects.noise(2, 10), "ab": b"not below a/"}
    objects.upload(client, bucket, prefix, tree)
    assert get(client, bucket, f"{prefix}/a/one") == tree["a/one"]
    assert get(client, bucket, f"{prefix}/a/one", Range="bytes=5-104") == tree["a/one"][5:105]
    assert get(client, bucket, f"{prefix}/a/two") == tree["a/two"]
    client.head_object(Bucket=bucket, Key=f"{prefix}/a/two")
    with pytest.raises(ClientError):
        get(client, bucket, f"{prefix}/a/none")

    assert recorder.bytes_for(f"{prefix}/a/") == 1_234_567 + 100 + 10
    assert recorder.bytes_for(f"{prefix}/ab") == 0
    assert recorder.ranges_for(f"{prefix}/a/one") == [None, (5, 104)]
    assert recorder.count(method="PUT", prefix=prefix) == 3
    assert recorder.count(method="GET", prefix=prefix) == 4
    assert recorder.count(method="HEAD", prefix=prefix, bucket=bucket) == 1
    assert [one.status for one in recorder.matching(method="GET", prefix=f"{prefix}/a/none")] == [404]
    assert all(one.complete for one in recorder.requests)
    recorder.reset()
    assert recorder.requests == []


def test_two_hundred_megabytes_pass_the_recorder_unharmed_and_quickly(
    client: S3Client, recorder: Recorder, bucket: str, prefix: str
) -> None:
    data = objects.noise("big", 200 * objects.MIB)
    client.put_object(Bucket=bucket, Key=f"{prefix}/big", Body=data)
    hasher = hashlib.sha256()
    for piece in client.get_object(Bucket=bucket, Key=f"{prefix}/big")["Body"].iter_chunks(objects.MIB):
        hasher.update(piece)
    assert hasher.digest() == hashlib.sha256(data).digest()
    assert recorder.bytes_for(prefix) == len(data)


def test_the_rate_limit_holds_over_all_connections(client: S3Client, recorder: Recorder, bucket: str, prefix: str) -> None:
    client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=objects.noise(1, 400_000))
    recorder.limit_rate(1_000_000)
    began = time.monotonic()
    readers = [threading.Thread(target=get, args=(client, bucket, f"{prefix}/a")) for _ in range(2)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(30)
    took = time.monotonic() - began
    assert recorder.bytes_for(prefix) == 800_000
    assert 0.7 < took < 10


def test_a_cut_connection_breaks_after_exactly_that_many_bytes_and_once(
    client: S3Client, recorder: Recorder, bucket: str, prefix: str
) -> None:
    data = objects.noise(1, 500_000)
    client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=data)
    recorder.cut(prefix, after_bytes=123_456)
    with pytest.raises((HTTPClientError, OSError)):
        get(client, bucket, f"{prefix}/a")
    assert recorder.bytes_for(prefix) == 123_456
    assert not recorder.requests[-1].complete
    assert get(client, bucket, f"{prefix}/a") == data


def test_a_stalled_answer_goes_on_when_it_is_resumed(client: S3Client, recorder: Recorder, bucket: str, prefix: str) -> None:
    data = objects.noise(1, 500_000)
    client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=data)
    recorder.stall(prefix, after_bytes=1_000)
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.append(get(client, bucket, f"{prefix}/a")))
    reader.start()
    recorder.wait_until(lambda it: it.bytes_for(prefix) == 1_000)
    assert seen == []
    recorder.resume()
    reader.join(30)
    assert seen == [data]


def test_a_scripted_answer_never_reaches_the_origin(client: S3Client, recorder: Recorder, bucket: str, prefix: str) -> None:
    client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"x")
    recorder.answer(503, prefix=prefix, headers={"Retry-After": "1"})
    with pytest.raises(ClientError) as refused:
        get(client, bucket, f"{prefix}/a")
    assert code(refused) == "SlowDown"
    assert get(client, bucket, f"{prefix}/a") == b"x"


def test_an_answer_can_be_amended(client: S3Client, recorder: Recorder, bucket: str, prefix: str) -> None:
    client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"x")
    recorder.amend(lambda head: head.set("ETag", '"another"'), prefix=prefix)
    assert client.get_object(Bucket=bucket, Key=f"{prefix}/a")["ETag"] == '"another"'


def test_an_object_can_be_changed_under_its_reader(
    client: S3Client, recorder: Recorder, seaweedfs: SeaweedFS, bucket: str, prefix: str
) -> None:
    etag = client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"old")["ETag"]
    recorder.before(lambda _: objects.put(seaweedfs, bucket, prefix, {"a": b"new"}), prefix=prefix)
    with pytest.raises(ClientError) as refused:
        get(client, bucket, f"{prefix}/a", IfMatch=etag)
    assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 412


def test_a_recorder_that_is_down_refuses_and_comes_back_on_its_port(
    client: S3Client, recorder: Recorder, bucket: str, prefix: str
) -> None:
    client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=b"x")
    with recorder.down(), pytest.raises((EndpointConnectionError, ConnectionClosedError)):
        get(client, bucket, f"{prefix}/a")
    assert get(client, bucket, f"{prefix}/a") == b"x"


def test_going_down_breaks_an_answer_that_is_under_way(client: S3Client, recorder: Recorder, bucket: str, prefix: str) -> None:
    client.put_object(Bucket=bucket, Key=f"{prefix}/a", Body=objects.noise(1, 500_000))
    recorder.stall(prefix, after_bytes=10_000)
    body = client.get_object(Bucket=bucket, Key=f"{prefix}/a")["Body"]
    recorder.stop()
    with contextlib.closing(body), pytest.raises((HTTPClientError, OSError)):
        body.read()


# ---- the trees


def test_a_model_tree_has_the_sizes_asked_for_and_is_the_same_each_time() -> None:
    tree = objects.model(7, unet=1_000_001, vae=200)
    assert len(tree["unet/diffusion_pytorch_model.safetensors"]) == 1_000_001
    assert len(tree["vae/diffusion_pytorch_model.safetensors"]) == 200
    assert objects.manifest_of(tree).revision == objects.manifest_of(objects.model(7, unet=1_000_001, vae=200)).revision


def test_two_models_share_everything_but_the_unet() -> None:
    one, other = objects.model(1), objects.model(2)
    assert {path for path in one if one[path] != other[path]} == {
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
    }


@pytest.mark.parametrize("size", [128, 129, 1_000, 10_007, 100_000, 1_000_003])
def test_a_safetensors_file_is_valid_and_of_exactly_that_size(size: int) -> None:
    data = objects.safetensors(1, size)
    header = int.from_bytes(data[:8], "little")
    assert len(data) == size
    assert f'"shape":[{size - 8 - header}]'.encode() in data[8 : 8 + header]


def test_a_tree_written_to_disk_reads_back(tmp_path: pathlib.Path) -> None:
    tree = objects.model(1)
    assert objects.read(objects.write(tmp_path, tree)) == tree


# ---- the hub


def downloaded(hub: Hub, folder: pathlib.Path, repo: str = "org/name", **more: object) -> pathlib.Path | str:
    """What huggingface_hub makes of it, in a process of its own: a folder, or the name of its error."""
    script = (
        "import json, sys\nfrom huggingface_hub import snapshot_download\n"
        "try:\n    print(snapshot_download(**json.loads(sys.argv[1])))\n"
        "except Exception as error:\n    print(type(error).__name__)\n"
    )
    asked = {"repo_id": repo, "endpoint": hub.endpoint_url, "cache_dir": str(folder), "token": False, **more}
    env = clean_environment(HF_HUB_DISABLE_PROGRESS_BARS="1", HF_HOME=str(folder))
    argv = [sys.executable, "-c", script, json.dumps(asked)]
    done = subprocess.run(argv, env=env, capture_output=True, text=True, timeout=120, check=True)
    said = done.stdout.strip()
    return pathlib.Path(said) if said.startswith("/") else said


def test_huggingface_hub_downloads_from_the_hub_what_was_pushed_there(tmp_path: pathlib.Path) -> None:
    tree = objects.model("hub")
    with Hub(page_entries=4) as hub:
        commit = hub.push("org/name", tree)
        hub.push("org/name", {"other.json": b"{}"}, branch="refs/pr/1")
        got = downloaded(hub, tmp_path)
        assert isinstance(got, pathlib.Path)
        assert (got.name, objects.read(got)) == (commit, tree)
        pulled = downloaded(hub, tmp_path, revision="refs/pr/1")
        assert isinstance(pulled, pathlib.Path)
        assert objects.read(pulled) == {"other.json": b"{}"}
        hub.moved["org/old"] = "org/name"
        moved = downloaded(hub, tmp_path / "moved", "org/old", allow_patterns=["unet/*"])
        assert isinstance(moved, pathlib.Path)
        assert objects.read(moved) == {path: data for path, data in tree.items() if path.startswith("unet/")}
        assert {ask.token for ask in hub.asked_of("cdn")} == {None}


def test_huggingface_hub_understands_the_hub_s_refusals(tmp_path: pathlib.Path) -> None:
    with Hub() as hub:
        for name in ("name", "gated", "private"):
            hub.push(f"org/{name}", {"a.json": b"{}", "w.safetensors": b"weights"})
        hub.gate("org/gated", "hf_reader")
        hub.hide("org/private", "hf_reader")
        assert downloaded(hub, tmp_path, "org/none") == "RepositoryNotFoundError"
        assert downloaded(hub, tmp_path, revision="none") == "RevisionNotFoundError"
        for repo, error in (("org/gated", "GatedRepoError"), ("org/private", "RepositoryNotFoundError")):
            assert downloaded(hub, tmp_path / "denied", repo) == error
            got = downloaded(hub, tmp_path / "let-in", repo, token="hf_reader")
            assert isinstance(got, pathlib.Path)
            assert objects.read(got) == {"a.json": b"{}", "w.safetensors": b"weights"}


def test_the_hub_s_cdn_takes_only_what_the_hub_has_signed(tmp_path: pathlib.Path) -> None:
    with Hub() as hub:
        hub.push("org/name", {"w.safetensors": b"weights"})
        url = f"{hub.endpoint_url}/org/name/resolve/main/w.safetensors"
        with urllib.request.urlopen(urllib.request.Request(url, headers={"Range": "bytes=1-3"}), timeout=10) as answer:
            assert (answer.status, answer.read(), answer.headers["Content-Range"]) == (206, b"eig", "bytes 1-3/7")
            signed = answer.url
        hub.expire()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(signed, timeout=10)
        refused.value.close()
        assert refused.value.code == 403
