"""`hotshelf link`: what other programs find in a folder of theirs, with the daemon up, busy, or gone."""

from __future__ import annotations

import argparse
import json
import os
import pathlib
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result

from hotshelf.cli import hotshelf
from tests import objects
from tests.conftest import BUCKET
from tests.daemon.conftest import MakeDaemon, Put
from tests.daemon.looking import granted
from tests.daemon.test_hub_view import ran
from tests.daemon_process import Daemon
from tests.servers.child import clean_environment
from tests.servers.seaweedfs import SeaweedFS

TREE = objects.model("linked")
LATER = objects.model("linked later")
CHECKPOINT = objects.tensors("model.diffusion_model.x", "first_stage_model.x", "cond_stage_model.x")
STYLE = objects.tensors("lora_unet_x.lora_down.weight", "lora_unet_x.lora_up.weight", ss_network_module="networks.lora")
VAE = objects.tensors("encoder.conv_in.weight", "decoder.up.0.x")


@pytest.fixture
def source(put: Put) -> str:
    return put(objects.published(TREE))


@pytest.fixture
def daemon(make_daemon: MakeDaemon, seaweedfs: SeaweedFS, put: Put, source: str) -> Daemon:
    """A pipeline, a checkpoint, a VAE and a LoRA, held."""
    single = put({"v1-5.safetensors": CHECKPOINT, "ae.safetensors": VAE, "pink.safetensors": STYLE}, "-files")
    models = {"sdxl": source, "sd15": f"{single}/v1-5.safetensors", "ae": f"{single}/ae.safetensors"}
    daemon = make_daemon(
        origins={"weed": seaweedfs.settings(BUCKET)},
        models={name: {"source": text} for name, text in models.items()},
        loras={"style": {"source": f"{single}/pink.safetensors"}},
    )
    for name in (*models, "style"):
        lease = granted(daemon.acquire(name))
        daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    return daemon


@pytest.fixture
def folder(tmp_path: pathlib.Path) -> pathlib.Path:
    """Where a program looks."""
    (tmp_path / "own").mkdir()
    return tmp_path / "own"


def link(daemon: Daemon, *words: str | pathlib.Path) -> Result:
    """As somebody would who sees nothing of it but the store."""
    at = ["--socket", "/nowhere", "--store", str(daemon.store)]
    return CliRunner().invoke(hotshelf, [*at, "link", *map(str, words)], prog_name="hotshelf")


def linked(daemon: Daemon, *words: str | pathlib.Path) -> Any:
    result = link(daemon, *words, "--format", "json")
    assert result.exit_code == 0, result.stderr
    return json.loads(result.stdout)


def changed(said: Any) -> dict[str, str]:
    return {one["path"]: one["change"] for one in said["changes"]}


def links_in(folder: pathlib.Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_symlink())


# ---- ComfyUI


def as_comfyui_reads(file: pathlib.Path) -> dict[str, list[str]]:
    """What ComfyUI (utils/extra_config.py) makes of the file: of each section, base_path with its variables expanded, and of
    each other key the lines of a text, each a folder below it."""
    found: dict[str, list[str]] = {}
    for section in yaml.safe_load(file.read_text()).values():
        base = os.path.expandvars(os.path.expanduser(section.pop("base_path")))
        assert section.pop("is_default", False) is False
        for kind, folders in section.items():
            found.setdefault(kind, []).extend(os.path.join(base, line) for line in folders.split("\n") if line)
    return found


def comfyui_lists(folders: dict[str, list[str]], kind: str) -> list[str]:
    """The names that its loaders offer (folder_paths.py, and nodes.py for DiffusersLoader): links are followed."""
    found = []
    for folder in folders[kind]:
        for at, _, files in os.walk(folder, followlinks=True):
            paths = [os.path.relpath(os.path.join(at, file), folder) for file in files]
            if kind == "diffusers":
                found += [os.path.dirname(path) for path in paths if os.path.basename(path) == "model_index.json"]
            else:
                found += [path for path in paths if path.endswith(".safetensors")]
    return sorted(found)


def test_comfyui_finds_every_name_in_the_folder_of_its_kind_and_the_daemon_is_not_asked(
    daemon: Daemon, folder: pathlib.Path
) -> None:
    daemon.terminate()
    said = linked(daemon, "--view", "comfyui", folder / "comfy")
    assert said["left"] == []
    assert said["without"] == {}
    flag, file = said["flags"]
    assert (flag, file) == ("--extra-model-paths-config", str(folder / "comfy" / "extra_model_paths.yaml"))
    folders = as_comfyui_reads(pathlib.Path(file))
    assert {kind: listed for kind in folders if (listed := comfyui_lists(folders, kind))} == {
        "checkpoints": ["sd15.safetensors"],
        "diffusers": ["sdxl"],
        "diffusion_models": ["sdxl.safetensors"],
        "loras": ["style.safetensors"],
        "text_encoders": ["sdxl.safetensors"],
        "vae": ["ae.safetensors", "sdxl.safetensors"],
    }
    assert pathlib.Path(folders["checkpoints"][0], "sd15.safetensors").read_bytes() == CHECKPOINT
    assert pathlib.Path(folders["loras"][0], "style.safetensors").read_bytes() == STYLE
    assert objects.read(pathlib.Path(folders["diffusers"][0], "sdxl")) == TREE
    assert pathlib.Path(folders["vae"][0], "sdxl.safetensors").read_bytes() == TREE["vae/diffusion_pytorch_model.safetensors"]


def test_a_changed_bucket_is_followed_without_another_run_and_another_run_changes_nothing(
    daemon: Daemon, put: Put, folder: pathlib.Path
) -> None:
    linked(daemon, "--view", "comfyui", folder)
    unet = folder / "diffusion_models" / "sdxl.safetensors"
    put(objects.published(LATER))
    for call, tree in (("refresh", LATER), ("rollback", TREE)):
        granted(daemon.call("POST", f"/v1/{call}", {"source": "sdxl"}))
        assert unet.read_bytes() == tree["unet/diffusion_pytorch_model.safetensors"]
        assert objects.read(folder / "diffusers" / "sdxl") == tree
    assert linked(daemon, "--view", "comfyui", folder)["changes"] == []


def test_what_is_gone_from_the_shelf_goes_at_the_next_run_which_can_be_seen_before(
    daemon: Daemon, folder: pathlib.Path
) -> None:
    linked(daemon, "--view", "comfyui", folder)
    (folder / "loras" / "of-mine.safetensors").symlink_to("/nowhere")
    before = links_in(folder)
    lease = granted(daemon.acquire("style"))
    daemon.call("DELETE", f"/v1/leases/{lease['id']}")
    granted(daemon.call("DELETE", f"/v1/snapshots/{lease['revision']}"))
    assert not (folder / "loras" / "style.safetensors").exists()
    assert changed(linked(daemon, "--view", "comfyui", folder, "--dry-run")) == {"loras/style.safetensors": "removed"}
    assert links_in(folder) == before
    assert changed(linked(daemon, "--view", "comfyui", folder)) == {"loras/style.safetensors": "removed"}
    assert links_in(folder) == [path for path in before if path != "loras/style.safetensors"]
    granted(daemon.acquire("style"))
    assert changed(linked(daemon, "--view", "comfyui", folder)) == {"loras/style.safetensors": "added"}


def test_what_is_somebody_s_own_is_left_and_named_and_all_else_is_done(daemon: Daemon, folder: pathlib.Path) -> None:
    objects.write(folder, {"loras/style.safetensors": b"mine", "extra_model_paths.yaml": b"a1111:\n"})
    (folder / "vae").symlink_to(folder / "elsewhere")  # where there is room
    (folder / "elsewhere").mkdir()
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "sd15.safetensors").symlink_to("/home/me/sd15.safetensors")
    said = linked(daemon, "--view", "comfyui", folder)
    assert said["left"] == ["checkpoints/sd15.safetensors", "loras/style.safetensors", "extra_model_paths.yaml"]
    assert (folder / "loras" / "style.safetensors").read_bytes() == b"mine"
    assert (folder / "extra_model_paths.yaml").read_bytes() == b"a1111:\n"
    assert os.readlink(folder / "checkpoints" / "sd15.safetensors") == "/home/me/sd15.safetensors"
    assert (folder / "elsewhere" / "ae.safetensors").read_bytes() == VAE
    assert "it is not ours" in link(daemon, "--view", "comfyui", folder).stderr


def test_a_kind_can_be_said_and_its_link_moves(daemon: Daemon, folder: pathlib.Path) -> None:
    linked(daemon, "--view", "comfyui", folder)
    said = changed(linked(daemon, "--view", "comfyui", folder, "--as", "sd15=diffusion_models"))
    assert said == {"checkpoints/sd15.safetensors": "removed", "diffusion_models/sd15.safetensors": "added"}
    assert link(daemon, "--view", "comfyui", folder, "--as", "sd15=checkpoint").exit_code == 2


def test_its_own_file_is_written_anew_when_the_folder_has_moved(daemon: Daemon, folder: pathlib.Path) -> None:
    linked(daemon, "--view", "comfyui", folder / "a b")
    (folder / "a b").rename(folder / "ü")
    assert changed(linked(daemon, "--view", "comfyui", folder / "ü")) == {"extra_model_paths.yaml": "turned"}
    assert as_comfyui_reads(folder / "ü" / "extra_model_paths.yaml")["loras"] == [str(folder / "ü" / "loras")]


# ---- AUTOMATIC1111


def test_a1111_finds_single_files_by_the_flags_that_are_printed(daemon: Daemon, folder: pathlib.Path) -> None:
    said = linked(daemon, "--view", "a1111", folder)
    webui = argparse.ArgumentParser()
    for flag in ("--ckpt-dir", "--lora-dir", "--vae-dir", "--embeddings-dir"):  # modules/cmd_args.py and Lora's preload.py
        webui.add_argument(flag)
    folders = {name: folder for name, folder in vars(webui.parse_args(said["flags"])).items() if folder is not None}
    assert {name: os.listdir(folder) for name, folder in folders.items()} == {
        "ckpt_dir": ["sd15.safetensors"],
        "lora_dir": ["style.safetensors"],
        "vae_dir": ["ae.safetensors"],
    }
    assert pathlib.Path(folders["ckpt_dir"], "sd15.safetensors").read_bytes() == CHECKPOINT
    assert list(said["without"]) == ["sdxl"]
    assert link(daemon, "--view", "a1111", folder, "--format", "quiet").stdout.split() == said["flags"]


# ---- the Hugging Face cache


@pytest.mark.torch
def test_the_hub_s_library_finds_the_shelf_s_repositories_beside_its_own(
    daemon: Daemon, put: Put, folder: pathlib.Path
) -> None:
    own = folder / "models--me--own"
    objects.write(own, {"refs/main": b"1" * 40, f"snapshots/{'1' * 40}/config.json": b"{}"})
    objects.write(folder / "models--shelf--sd15", {"mine": b""})
    said = linked(daemon, "--view", "hf", folder)
    assert said["left"] == ["models--shelf--sd15"]
    assert changed(said) == {f"models--shelf--{name}": "added" for name in ("ae", "sdxl", "style")}
    environment = clean_environment(HOME=str(folder), **said["variables"])
    code = "from huggingface_hub import snapshot_download; print(snapshot_download({!r}))"
    assert objects.read(ran(code.format("shelf/sdxl"), environment)) == TREE
    put(objects.published(LATER))
    granted(daemon.call("POST", "/v1/refresh", {"source": "sdxl"}))
    assert objects.read(ran(code.format("shelf/sdxl"), environment)) == LATER
    assert objects.read(ran(code.format("me/own"), environment)) == {"config.json": b"{}"}
    file = "from huggingface_hub import hf_hub_download as f; print(f('shelf/style', 'pink.safetensors'))"
    assert pathlib.Path(ran(file, environment)).read_bytes() == STYLE
    # What looks through the cache resolves the shelf's links by their text alone, and so counts what is its own.
    counted = "from huggingface_hub import scan_cache_dir; print(*(one.repo_id for one in scan_cache_dir().repos))"
    assert ran(counted, environment) == "me/own"
    assert objects.read(folder / "models--shelf--sd15") == {"mine": b""}


def test_a_repository_that_left_the_shelf_leaves_the_cache(daemon: Daemon, folder: pathlib.Path) -> None:
    linked(daemon, "--view", "hf", folder)
    daemon.restart(models={})
    said = linked(daemon, "--view", "hf", folder)
    assert changed(said) == {f"models--shelf--{name}": "removed" for name in ("ae", "sd15", "sdxl")}
    assert links_in(folder) == ["models--shelf--style"]
    shown = link(daemon, "--view", "hf", folder)
    assert shown.stdout.splitlines() == [f"export HF_HUB_CACHE={folder}", "export HF_HUB_OFFLINE=1"]


# ---- what is refused


def test_where_there_is_no_shelf_nothing_is_touched(tmp_path: pathlib.Path) -> None:
    (tmp_path / "loras").mkdir()
    (tmp_path / "loras" / "s.safetensors").symlink_to(tmp_path / "shelf/names/loras/s/x.safetensors")
    words = ["--store", str(tmp_path / "shelf"), "link", "--view", "comfyui", str(tmp_path)]
    result = CliRunner().invoke(hotshelf, words, prog_name="hotshelf")
    assert result.exit_code == 3
    assert f"there is no shelf at {tmp_path}/shelf" in result.stderr
    assert links_in(tmp_path) == ["loras/s.safetensors"]


def test_the_shelf_itself_and_folders_that_others_would_misread_are_refused(daemon: Daemon, folder: pathlib.Path) -> None:
    (folder / "in").symlink_to(daemon.store)
    for refused in (daemon.store / "hub", folder / "in" / "x", folder / "$HOME", folder / "a\nb"):
        assert link(daemon, "--view", "hf", refused).exit_code == 2
    assert link(daemon, "--view", "hf", folder, "--as", "sd15=vae").exit_code == 2
    (folder / "file").write_text("")
    assert link(daemon, "--view", "hf", folder / "file" / "x").exit_code == 2


def test_a_folder_that_nobody_may_write_is_said_to_be(daemon: Daemon) -> None:
    result = link(daemon, "--view", "hf", "/sys/hotshelf")
    assert result.exit_code == 6
    assert "/sys/hotshelf" in result.stderr
