"""Every command that the README shows is run, in the order in which a reader would, against what it talks about."""

from __future__ import annotations

import json
import os
import pathlib
import re
import subprocess
import sys
import sysconfig
from collections.abc import Iterator

import pytest
import yaml

import hotshelf.demo
from hotshelf.client import Client
from hotshelf_daemon.config import load
from hotshelf_daemon.origin import s3
from tests import objects
from tests.daemon_process import Daemon
from tests.faults.scripted_gcs import ScriptedGcs, service_account_key
from tests.faults.scripted_origin import ScriptedOrigin
from tests.servers.child import clean_environment
from tests.servers.hub import Hub
from tests.servers.ports import free_ports
from tests.servers.seaweedfs import SeaweedFS
from tests.waiting import wait_until

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
DATA = pathlib.Path(hotshelf.demo.__file__).parent / "data"


def block(language: str, holding: str) -> str:
    (found,) = [text for kind, text in BLOCKS if kind == language and holding in text]
    return found


@pytest.fixture(scope="module")
def bucket(seaweedfs: SeaweedFS) -> str:
    """A bucket of its own, with a model `sdxl` (the demo's) and a LoRA `style`."""
    name = "readme-weights"
    with seaweedfs.client() as client:
        client.create_bucket(Bucket=name)
        for path in sorted((DATA / "model").rglob("*")):
            if path.is_file():
                client.put_object(Bucket=name, Key=f"sdxl/{path.relative_to(DATA / 'model')}", Body=path.read_bytes())
        style = (DATA / "loras/pink/pink.safetensors").read_bytes()
        client.put_object(Bucket=name, Key="loras/style.safetensors", Body=style)
    return name


@pytest.fixture
def configuration(seaweedfs: SeaweedFS, bucket: str) -> dict[str, object]:
    """The README's YAML with this machine's origin, bucket and paths in it."""
    text = block("yaml", "store:").replace("s3://weights/", f"s3://{bucket}/")
    settings: dict[str, object] = yaml.safe_load(text)
    settings.pop("store")
    settings["origins"] = {"minio": seaweedfs.settings(bucket)}
    return settings


@pytest.fixture
def daemon(tmp_path: pathlib.Path, configuration: dict[str, object]) -> Iterator[Daemon]:
    with Daemon(tmp_path / "d", **configuration) as running:
        yield running


def shell(text: str, folder: pathlib.Path, environment: dict[str, str]) -> str:
    """Runs a block as it stands, with the installed programs on the path; its output. Every line must succeed."""
    path = f"{sysconfig.get_path('scripts')}:{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text], cwd=folder, env={**environment, "PATH": path},
        capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, text + done.stdout + done.stderr
    return done.stdout


def test_mirrors_are_asked_before_the_origin(seaweedfs: SeaweedFS, bucket: str, prefix: str, tmp_path: pathlib.Path) -> None:
    tree = objects.model("readme")
    objects.put(seaweedfs, bucket, prefix, objects.published(tree))
    with ScriptedOrigin() as weed, ScriptedOrigin() as cdn:
        cdn.objects.update({f"{prefix}/{key}": data for key, data in objects.published(tree).items()})
        text = block("yaml", "mirrors:").replace("http://weed-s3:8333", weed.endpoint_url)
        shown = yaml.safe_load(text.replace("https://cdn.example.com", cdn.endpoint_url))["origins"]["b2"]
        with Daemon(tmp_path / "d", origins={"b2": {**seaweedfs.settings(bucket), "mirrors": shown["mirrors"]}}) as running:
            assert objects.read(running.store / running.acquire(f"s3://{bucket}/{prefix}").body["path"]) == tree
        assert weed.asked
        assert cdn.asked


def test_a_repository_on_the_hub_is_leased_by_its_name(tmp_path: pathlib.Path) -> None:
    wanted = {"model_index.json": b"{}", "unet/w.fp16.safetensors": objects.safetensors("fp16", 1_000)}
    (tmp_path / "hf-token").write_text("hf_of_the_operator")
    with Hub() as hub:
        hub.push("stabilityai/sdxl-turbo", {**wanted, "unet/w.safetensors": objects.safetensors("fp32", 2_000)})
        hub.hide("stabilityai/sdxl-turbo", "hf_of_the_operator")
        shown = yaml.safe_load(block("yaml", "hf://").replace("/etc/hotshelf/", f"{tmp_path}/"))
        with Daemon(tmp_path / "d", env={"HF_ENDPOINT": hub.endpoint_url}, **shown) as running:
            assert objects.read(running.store / running.acquire("turbo").body["path"]) == wanted
            assert running.acquire("hf://somebody/else").status == 403


def test_no_block_of_the_readme_is_left_untested() -> None:
    tested = (
        "make demo",
        "image = pipe(",
        "lora_mode=",
        "style.yaml",
        "bundles: {key_file",
        "load_compile_cache",  # tests/compiling runs it, and the commands
        "compile-cache info",
        "B2_BUCKET",
        "store:",
        "hotshelfd --config",
        "hotshelf acquire",
        "hotshelf rollback",
        "openssl",
        "verify: required",
        "mirrors:",
        "r2.cloudflarestorage",
        "hotshelf env",
        "hotshelf link",
        "model_cache:",
        "import-truss",
        "s3:GetObject",
        "acquire_model_cache",
        "hotshelf bake",
        "hub_mirror",
        "HF_ENDPOINT=",
        "gcs: {service_account_file",
        "hf://",
        "credentials: {weights: hotshelf-origin}",  # tests/deploy renders it
        "helm install",
        "flowchart",
        "hotshelf ls",
        "hotshelf worker",
        "painter.py",
    )
    assert [text for _, text in BLOCKS if not any(words in text for words in tested)] == []


def test_the_two_commands_are_targets_of_the_makefile() -> None:
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    commands = block("sh", "make demo").split("\n")
    assert {command.removeprefix("make ") for command in commands if command} <= set(targets)


def test_the_pictures_are_there() -> None:
    pictures = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README)
    assert pictures
    assert [picture for picture in pictures if not (ROOT / picture).is_file()] == []


def test_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"(?<!!)\[[^\]]+\]\(([^)#]+)\)", README) if "://" not in link]
    assert [link for link in links if not (ROOT / link).exists()] == []


@pytest.mark.torch
def test_six_lines_in_a_worker_draw(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    code = block("python", "image = pipe(") + "\nimage.save('drawn.png')\n"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=daemon.environment, capture_output=True, text=True, timeout=240
    )
    assert done.returncode == 0, done.stderr
    assert "'draw'" not in done.stdout
    assert "load" in done.stdout
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.torch
def test_what_is_built_once_is_loaded_ever_after_and_can_be_built_ahead(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    said = [
        subprocess.run(
            [sys.executable, "-c", block("python", "lora_mode=")], cwd=tmp_path, env=daemon.environment, capture_output=True,
            text=True, timeout=240,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert [one.returncode for one in said] == [0, 0], said[0].stderr + said[1].stderr
    assert [one.stdout.split()[0] for one in said] == ["built", "snapshot"]
    (tmp_path / "style.yaml").write_text(block("yaml", "style.yaml"))
    assert "pipeline:" in shell(block("sh", "hotshelf build"), tmp_path, dict(daemon.environment))


@pytest.mark.torch
def test_the_seed_variables_are_all_that_one_bucket_needs(seaweedfs: SeaweedFS, bucket: str, tmp_path: pathlib.Path) -> None:
    text = block("sh", "B2_BUCKET")
    text = text.replace("B2_BUCKET=weights", f"B2_BUCKET={bucket}").replace("/workspace", str(tmp_path))
    text = text.replace("B2_KEY_ID=…", f"B2_KEY_ID={seaweedfs.access_key_id}")
    text = text.replace("B2_SECRET_KEY=…", f"B2_SECRET_KEY={seaweedfs.secret_access_key}")
    text = text.replace("handler.py", str(ROOT / "deploy" / "handler.py"))
    environment = clean_environment(AWS_ENDPOINT_URL=seaweedfs.endpoint_url, XDG_RUNTIME_DIR=str(tmp_path))
    assert '"image"' in shell(text, tmp_path, environment)


@pytest.mark.torch
def test_a_worker_is_kept_and_another_is_forked_beside_it_as_shown(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    [port] = free_ports(1)
    kept = block("sh", "--prewarm").replace("0.0.0.0:8000", f"127.0.0.1:{port}").strip()
    beside = block("sh", "worker painter.py").strip()
    (tmp_path / "painter.py").write_text(block("python", "painter.py"))
    health = f"python -c 'import urllib.request as r; print(r.urlopen(\"http://127.0.0.1:{port}/health\").status)'"
    ready = f"until {health} 2>/dev/null; do kill -0 $zygote; sleep 0.2; done"
    both = f"{kept} 2>log & zygote=$!\n{ready}\n{beside}\nkill $zygote\nwait $zygote || true"
    said = shell(both, tmp_path, {**daemon.environment, "HOTSHELF_ZYGOTE": str(tmp_path / "own" / "z")})
    assert said == "200\n"
    assert (tmp_path / "painted.png").read_bytes().startswith(b"\x89PNG")


def test_the_configuration_of_the_readme_is_accepted(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(block("yaml", "store:"))
    settings = load({"config": str(file)}, {}).settings
    assert settings.names["sdxl"].pin
    assert settings.origins["minio"].addressing_style == "path"


@pytest.mark.needs("openssl")
def test_a_compile_cache_is_shared_between_nodes_as_shown(
    seaweedfs: SeaweedFS, bucket: str, prefix: str, tmp_path: pathlib.Path
) -> None:
    text = block("yaml", "bundles: {key_file").replace("s3://weights/built", f"s3://{bucket}/{prefix}")
    settings = yaml.safe_load(text.replace("/etc/hotshelf", str(tmp_path))) | {"origins": {"it": seaweedfs.settings(bucket)}}
    shell("(umask 077; openssl rand -hex 32 > bundles.key)", tmp_path, clean_environment())
    (tmp_path / "archive").write_bytes(objects.noise("cache", 30_000))
    with Daemon(tmp_path / "one", **settings) as one, Daemon(tmp_path / "two", **settings) as two:
        Client(one.socket, one.store).put_bundle("h200-torch2.13", "9f2c", tmp_path / "archive")
        wait_until(lambda: "bundle published" in one.log_text, what="the bundle to be published")
        with Client(two.socket, two.store).acquire("bundle:h200-torch2.13/9f2c") as lease:
            assert (lease.path / "archive").read_bytes() == (tmp_path / "archive").read_bytes()


def test_the_services_of_the_readme_are_accepted_and_each_bucket_is_one_s(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(block("yaml", "r2.cloudflarestorage"))
    settings = load({"config": str(file)}, {}).settings
    assert {s3.bucket(settings, name)[0] for name in ("mine", "weights", "models", "shared", "open")} == set(settings.origins)


def test_the_daemon_starts_as_shown_and_config_show_explains_it(
    configuration: dict[str, object], tmp_path: pathlib.Path
) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(
        yaml.safe_dump({**configuration, "store": str(tmp_path / "shelf"), "listen": f"127.0.0.1:{free_ports(1)[0]}"})
    )
    start, show = block("sh", "hotshelfd --config").replace("/etc/hotshelf/config.yaml", str(file)).strip().split("\n")
    environment = clean_environment(HOTSHELF_SOCKET=str(tmp_path / "s"), HOTSHELF_CONFIG=str(file))
    ready = f"until hotshelf --socket {tmp_path}/s health >/dev/null 2>&1; do sleep 0.1; done"
    both = f"{start} 2>log & daemon=$!\n{show}\n{ready}\nkill $daemon\nwait $daemon"
    said = shell(both, tmp_path, environment)
    assert str(file) in said


def test_push_and_acquire_as_shown(
    daemon: Daemon, seaweedfs: SeaweedFS, bucket: str, configuration: dict[str, object], tmp_path: pathlib.Path
) -> None:
    objects.write(tmp_path / "sdxl", objects.model("readme"))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration))
    text = block("sh", "hotshelf acquire").replace("s3://weights/", f"s3://{bucket}/pushed/")
    text = text.replace("acquire sdxl", f"acquire s3://{bucket}/pushed/sdxl")
    said = shell(text, tmp_path, {**daemon.environment, "HOTSHELF_CONFIG": str(file)})
    assert len({*said.strip().split("\n")[-2:]}) == 1
    held = pathlib.Path(said.strip().split("\n")[-1])
    assert objects.read(held) == objects.model("readme")


def test_a_changed_bucket_is_refreshed_rolled_back_and_refreshed_as_shown(
    daemon: Daemon, seaweedfs: SeaweedFS, bucket: str, tmp_path: pathlib.Path
) -> None:
    key, text = "sdxl/scheduler/scheduler_config.json", block("sh", "hotshelf rollback")
    old = daemon.acquire("sdxl").body["revision"]
    with seaweedfs.client() as client:
        data = client.get_object(Bucket=bucket, Key=key)["Body"].read()
        try:
            client.put_object(Bucket=bucket, Key=key, Body=data + b"\n")
            first, second, third = shell(text, tmp_path, dict(daemon.environment)).splitlines()
        finally:
            client.put_object(Bucket=bucket, Key=key, Body=data)
    assert f"and was {old[:19]}" in first
    assert f"went back to {old}" in second
    assert third.endswith("follows its origin again")


@pytest.mark.needs("openssl")
def test_what_is_signed_as_shown_is_what_an_origin_that_requires_it_serves(
    seaweedfs: SeaweedFS, bucket: str, configuration: dict[str, object], tmp_path: pathlib.Path
) -> None:
    objects.write(tmp_path / "sdxl", objects.model("signed"))
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration))
    text = block("sh", "openssl").replace("s3://weights/", f"s3://{bucket}/")
    assert "signed with the key" in shell(text, tmp_path, clean_environment(HOTSHELF_CONFIG=str(file)))
    origins = yaml.safe_load(block("yaml", "verify: required").replace("/etc/hotshelf", str(tmp_path)))["origins"]
    needed = {name: origins["minio"][name] for name in ("verify", "keys")}
    with Daemon(tmp_path / "d", origins={"minio": {**seaweedfs.settings(bucket), **needed}}) as daemon:
        lease = daemon.acquire(f"s3://{bucket}/signed").body
        assert objects.read(daemon.store / lease["path"]) == objects.model("signed")
        assert daemon.acquire(f"s3://{bucket}/sdxl").body["code"] == "integrity_error"


@pytest.mark.torch
def test_the_mirror_is_used_as_shown(configuration: dict[str, object], tmp_path: pathlib.Path) -> None:
    [port] = free_ports(1)
    (tmp_path / "mirror-token").write_text("a token of one's own choosing")

    def here(text: str) -> str:
        return text.replace("/etc/hotshelf", str(tmp_path)).replace("9465", str(port))

    shown = yaml.safe_load(here(block("yaml", "hub_mirror")))
    with Daemon(tmp_path / "d", **{**configuration, **shown}):
        asked = here(block("sh", "HF_ENDPOINT=")).replace("hotshelf.default.svc", "localhost")
        said = shell(asked, tmp_path, clean_environment(HOME=str(tmp_path)))
    assert "unet/diffusion_pytorch_model.safetensors" in objects.read(said.strip().splitlines()[-1])


def test_a_shelf_is_baked_as_shown(configuration: dict[str, object], tmp_path: pathlib.Path) -> None:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(configuration))
    assert "sdxl" in shell(block("sh", "hotshelf bake"), tmp_path, clean_environment(HOME=str(tmp_path)))
    assert (tmp_path / "shelf" / "index" / "index.db").exists()


@pytest.mark.torch
def test_a_program_that_knows_nothing_of_us_reads_a_configured_name(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    assert daemon.acquire("sdxl").status == 200
    shell(block("sh", "hotshelf env"), tmp_path, {**daemon.environment, "HOME": str(tmp_path)})


def test_other_programs_folders_are_filled_as_shown(daemon: Daemon, tmp_path: pathlib.Path) -> None:
    for name in ("sdxl", "style"):
        assert daemon.acquire(name).status == 200
    environment = {**daemon.environment, "HOTSHELF_STORE": str(daemon.store), "HOME": str(tmp_path)}
    said = shell(block("sh", "hotshelf link"), tmp_path, environment).splitlines()
    comfyui, webui = tmp_path / "comfyui-models", tmp_path / "webui-models"
    assert f"--extra-model-paths-config {comfyui}/extra_model_paths.yaml" in said
    assert f"--lora-dir {webui}/models/Lora" in said
    assert f"export HF_HUB_CACHE={tmp_path}/.cache/huggingface/hub" in said
    pink = (DATA / "loras/pink/pink.safetensors").read_bytes()
    assert (comfyui / "loras" / "style.safetensors").read_bytes() == pink
    assert (webui / "models/Lora" / "style.safetensors").read_bytes() == pink
    assert (comfyui / "diffusers" / "sdxl" / "model_index.json").is_file()
    assert "models--shelf--sdxl" in os.listdir(tmp_path / ".cache/huggingface/hub")


def test_a_truss_is_imported_as_shown_and_lies_where_truss_puts_it(
    seaweedfs: SeaweedFS, bucket: str, tmp_path: pathlib.Path
) -> None:
    shown = yaml.safe_load(block("yaml", "model_cache:").replace("s3://weights/", f"s3://{bucket}/"))
    of_buckets = [entry for entry in shown["model_cache"] if "://" in entry["repo_id"]]  # the others are not on this machine
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model_cache": of_buckets}))
    (tmp_path / "data").mkdir()
    account = {"aws_access_key_id": seaweedfs.access_key_id, "aws_secret_access_key": seaweedfs.secret_access_key}
    (tmp_path / "data" / "s3_credentials.json").write_text(json.dumps({**account, "aws_region": "us-east-1"}))
    command = block("sh", "import-truss").replace("/etc/hotshelf/config.yaml", "hotshelf.yaml")
    shell(command, tmp_path, clean_environment())
    settings = yaml.safe_load((tmp_path / "hotshelf.yaml").read_text())
    settings["origins"]["truss"] |= {"endpoint_url": seaweedfs.endpoint_url, "addressing_style": "path"}
    with Daemon(tmp_path / "d", **settings) as daemon:
        code = block("python", "acquire_model_cache").replace("weights/sdxl", f"{bucket}/sdxl")
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, env=daemon.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert os.path.samefile(done.stdout.strip(), daemon.store / "model_cache" / bucket / "sdxl")
        assert (daemon.store / "model_cache" / bucket / "sdxl" / "model_index.json").is_file()


def test_the_policy_allows_to_list_and_to_read_and_no_more() -> None:
    statements = json.loads(block("json", "s3:GetObject"))["Statement"]
    assert {one["Action"]: one["Resource"] for one in statements} == {
        "s3:ListBucket": "arn:aws:s3:::weights",
        "s3:GetObject": "arn:aws:s3:::weights/*",
    }


def test_a_bucket_of_google_s_is_configured_as_shown(tmp_path: pathlib.Path) -> None:
    given = yaml.safe_load(block("yaml", "gcs: {service_account_file").replace("/etc/hotshelf", str(tmp_path)))
    with ScriptedGcs() as server:
        server.token = "a token"
        server.objects |= {f"sdxl/{path}": data for path, data in objects.model("gcs").items()}
        (tmp_path / "gcs.json").write_text(service_account_key(server.endpoint_url))
        given["gcs"]["endpoint_url"] = server.endpoint_url
        with Daemon(tmp_path / "d", **given) as daemon:
            assert objects.read(daemon.store / daemon.acquire("sdxl").body["path"]) == objects.model("gcs")


def test_the_index_is_inspected_as_shown(daemon: Daemon, configuration: dict[str, object], tmp_path: pathlib.Path) -> None:
    assert daemon.acquire("sdxl").status == 200
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(configuration))
    lines = block("sh", "hotshelf ls").strip().split("\n")
    doctor = lines.pop()
    said = shell("\n".join(lines), tmp_path, {**daemon.environment, "HOTSHELF_CONFIG": str(file)})
    assert "sdxl" in said
    assert "model_index.json" in said
    examined = shell(f"{doctor} || [ $? = 10 ]", tmp_path, {**daemon.environment, "HOTSHELF_CONFIG": str(file)})
    assert examined
