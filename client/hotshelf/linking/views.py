"""Which link goes where, decided purely. A path is relative to the folder that is filled; a target is absolute, and stays.

ComfyUI loads diffusers' UNets and transformers, VAEs, text encoders and ControlNets one by one, converting names as it goes,
and whole Stable Diffusions with its DiffusersLoader; AUTOMATIC1111 loads single files in the original form alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from hotshelf.linking.kinds import DIFFUSERS_VAE
from hotshelf.linking.shelved import Shelved

#: ComfyUI's folders of models, which are also the kinds that a name can be said to be.
KINDS = (
    *("checkpoints", "diffusion_models", "text_encoders", "vae", "loras", "controlnet", "clip_vision"),
    *("upscale_models", "embeddings", "diffusers"),
)
COMFYUI: Mapping[str, str] = {**{kind: kind for kind in KINDS}, DIFFUSERS_VAE: "vae"}
#: Kinds by AUTOMATIC1111's folders, and the flag for each. That of ControlNets is its extension's.
A1111: Mapping[str, str] = {
    "checkpoints": "models/Stable-diffusion",
    "loras": "models/Lora",
    "vae": "models/VAE",
    "embeddings": "embeddings",
    "controlnet": "models/ControlNet",
}
FLAGS: Mapping[str, str] = {
    "models/Stable-diffusion": "--ckpt-dir",
    "models/Lora": "--lora-dir",
    "models/VAE": "--vae-dir",
    "embeddings": "--embeddings-dir",
    "models/ControlNet": "--controlnet-dir",
}
_WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")
_SHARD = re.compile(r"-\d{5}-of-\d{5}\.")
#: Of a diffusers pipeline: the folders of parts, what they are, and the file that has all of one, whole precision first.
_PARTS = (
    *(("unet", "diffusion_models"), ("transformer", "diffusion_models"), ("vae", DIFFUSERS_VAE)),
    *((f"text_encoder{number}", "text_encoders") for number in ("", "_2", "_3")),
)
_PART_FILES = tuple(
    f"{stem}{variant}.safetensors" for variant in ("", ".fp16") for stem in ("diffusion_pytorch_model", "model")
)


@dataclass(slots=True)
class View:
    """`links` by path; `without` says for names why there is nothing of them."""

    links: dict[str, str] = field(default_factory=dict)
    without: dict[str, str] = field(default_factory=dict)


def repositories(store: str, folders: Iterable[str]) -> View:
    """For a Hugging Face cache: one link a repository, so that its refs move there when they do on the shelf."""
    return View({folder: os.path.join(store, "hub", folder) for folder in folders})


def sorted_by_kind(shelved: Iterable[Shelved], folders: Mapping[str, str], said: Mapping[str, str]) -> View:
    """Each name in the folder of its kind: `said` by whoever asks, else a LoRA by configuration, else as its header tells."""
    view = View()
    for one in shelved:
        found = 0
        for kind, path, file in _files(one, said.get(one.name)):
            at = f"{folders[kind]}/{path}" if kind in folders else None
            if at is not None and at not in view.links:
                view.links[at] = os.path.join(one.path, file) if file else one.path
                found += 1
        if not found:
            view.without[one.name] = "nothing of it is a file that goes into one of the folders, or another name has its place"
    for name in said.keys() - {one.name for one in shelved}:
        view.without[name] = "it is not on the shelf now"
    return view


def _files(one: Shelved, said: str | None) -> Iterator[tuple[str, str, str]]:
    """Kind, path in the kind's folder, and file of the name; no file for the whole of it. Pipelines may have checkpoints beside
    their parts, as some repositories do."""
    if said == "diffusers" or (said is None and not one.is_lora and "model_index.json" in one.files):
        yield "diffusers", one.name, ""
        yield from _parts(one)
    weights = [file for file in one.files if "/" not in file and file.endswith(_WEIGHTS) and not _SHARD.search(file)]
    for file in weights:
        kind = said or ("loras" if one.is_lora else one.kinds.get(file) or ("checkpoints" if len(one.files) == 1 else None))
        if kind not in (None, "diffusers"):
            yield kind, called(one.name, file) if len(weights) == 1 else f"{one.name}/{file}", file


def _parts(one: Shelved) -> Iterator[tuple[str, str, str]]:
    for part, kind in _PARTS:
        file = next((path for name in _PART_FILES if (path := f"{part}/{name}") in one.files), None)
        if file is not None:
            number = part.removeprefix("text_encoder") if kind == "text_encoders" else ""
            yield kind, called(f"{one.name}{number}", file), file


def called(name: str, file: str) -> str:
    """NAME with the file's suffix, by which those programs know what to do with it."""
    suffix = os.path.splitext(file)[1]
    return name if name.endswith(suffix) else f"{name}{suffix}"


def flags(directory: str, links: Iterable[str]) -> list[str]:
    """For AUTOMATIC1111: of the folders that something is in, since most of them replace its own."""
    paths = list(links)
    filled = [folder for folder in FLAGS if any(path.startswith(f"{folder}/") for path in paths)]
    return [word for folder in filled for word in (FLAGS[folder], os.path.join(directory, folder))]
