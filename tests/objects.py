"""Model trees to serve, made up here: the layout of diffusers, valid safetensors, bytes that a seed decides.

A tree is `{relative path: bytes}`, in the order of its paths.
"""

from __future__ import annotations

import json
import os
import pathlib
import random
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hotshelf_shared.digest import Digest
from hotshelf_shared.manifest import FileEntry, Manifest

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from tests.servers.s3 import S3Origin

MIB = 1 << 20
Tree = dict[str, bytes]

_INDEX: dict[str, Any] = {
    "_class_name": "StableDiffusionPipeline",
    "_diffusers_version": "0.38.0",
    "requires_safety_checker": False,
    "safety_checker": [None, None],
    "feature_extractor": [None, None],
    "scheduler": ["diffusers", "DDIMScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_WEIGHTS = {
    "text_encoder": "text_encoder/model.safetensors",
    "unet": "unet/diffusion_pytorch_model.safetensors",
    "vae": "vae/diffusion_pytorch_model.safetensors",
}


def noise(seed: object, size: int) -> bytes:
    """`size` bytes that look random, the same for the same seed everywhere; quick also for hundreds of megabytes."""
    block = bytearray(random.Random(f"hotshelf {seed!r}").randbytes(MIB))
    out = bytearray()
    for number in range(-(-size // MIB)):
        block[:8] = number.to_bytes(8, "big")
        out += block
    return bytes(memoryview(out)[:size])


def safetensors(seed: object, size: int) -> bytes:
    """A valid safetensors file of exactly `size` bytes (128 at least): one tensor of bytes."""

    def head(count: int) -> bytes:
        body = {"__metadata__": {"format": "pt"}, "weight": {"dtype": "U8", "shape": [count], "data_offsets": [0, count]}}
        text = json.dumps(body, separators=(",", ":")).encode()
        return text + b" " * (-len(text) % 8)

    count = size - 8 - len(head(size))
    text = head(count).ljust(size - 8 - count)  # a count of fewer digits: spaces make up for it, as the format allows
    if count < 0:
        raise ValueError(f"a safetensors file of {size} bytes has no room for its header")
    return len(text).to_bytes(8, "little") + text + noise(seed, count)


def tensors(*names: str, **metadata: str) -> bytes:
    """A valid safetensors file with tensors of these names, a byte each."""
    body: dict[str, Any] = {"__metadata__": {"format": "pt", **metadata}}
    body |= {name: {"dtype": "U8", "shape": [1], "data_offsets": [at, at + 1]} for at, name in enumerate(names)}
    text = json.dumps(body, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + bytes(range(len(names)))


def model(seed: object = 0, *, unet: int = 96 << 10, text_encoder: int = 48 << 10, vae: int = 32 << 10, **files: bytes) -> Tree:
    """A Stable Diffusion pipeline as a tree: 11 files. Sizes are of the weight files; `files` adds or replaces.

    Text encoder and VAE depend on their sizes only, so two models with different seeds share those files.
    """
    sizes = {"text_encoder": text_encoder, "unet": unet, "vae": vae}
    configs: dict[str, dict[str, Any]] = {
        "scheduler/scheduler_config.json": {"_class_name": "DDIMScheduler", "num_train_timesteps": 1000},
        "text_encoder/config.json": {"architectures": ["CLIPTextModel"], "model_type": "clip_text_model"},
        "tokenizer/tokenizer_config.json": {"tokenizer_class": "CLIPTokenizer", "model_max_length": 77},
        "tokenizer/vocab.json": {"<|startoftext|>": 0, "<|endoftext|>": 1, "a": 2, "a</w>": 3},
        "unet/config.json": {"_class_name": "UNet2DConditionModel", "sample_size": 8, "seed": str(seed)},
        "vae/config.json": {"_class_name": "AutoencoderKL", "latent_channels": 4},
        "model_index.json": _INDEX,
    }
    tree = {path: json.dumps(body, indent=2).encode() for path, body in configs.items()}
    tree["tokenizer/merges.txt"] = b"#version: 0.2\n"
    for name, path in _WEIGHTS.items():
        tree[path] = safetensors((name, seed) if name == "unet" else name, sizes[name])
    return dict(sorted({**tree, **files}.items()))


def lora(seed: object = 0, size: int = 16 << 10) -> bytes:
    """One LoRA file; valid safetensors, though no UNet would take it."""
    return safetensors(("lora", seed), size)


def size_of(tree: Mapping[str, bytes]) -> int:
    return sum(map(len, tree.values()))


def manifest_of(tree: Mapping[str, bytes]) -> Manifest:
    """Its `.revision` is what a lease on exactly these files must say."""
    return Manifest.of({path: FileEntry(Digest.of(data), len(data)) for path, data in tree.items()})


def upload(client: S3Client, bucket: str, prefix: str, tree: Mapping[str, bytes]) -> None:
    """Each file as PREFIX/path."""
    for path, data in tree.items():
        client.put_object(Bucket=bucket, Key=f"{prefix}/{path}" if prefix else path, Body=data)


def put(origin: S3Origin, bucket: str, prefix: str, tree: Mapping[str, bytes]) -> None:
    """`upload` with a client of its own."""
    with origin.client() as client:
        upload(client, bucket, prefix, tree)


def published(tree: Mapping[str, bytes]) -> Tree:
    """What `hotshelf push` leaves below a prefix for this tree: content-named blobs, the manifest, and what names it."""
    manifest = manifest_of(tree)
    body = json.dumps({"version": 1, "revision": str(manifest.revision)}).encode()
    blobs = {f"blobs/sha256/{Digest.of(data).hex}": data for data in tree.values()}
    return {**blobs, f"manifests/{manifest.revision.hex}.json": manifest.canonical(), "hotshelf.json": body}


def write(folder: pathlib.Path, tree: Mapping[str, bytes]) -> pathlib.Path:
    """The tree as files below `folder`."""
    for path, data in tree.items():
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    return folder


def read(folder: str | os.PathLike[str]) -> Tree:
    """The files below `folder`, links followed, as a tree: `assert read(lease.path) == tree`."""
    base = pathlib.Path(folder)
    found = (pathlib.Path(at) / name for at, _, names in os.walk(base) for name in names)
    return {str(path.relative_to(base)): path.read_bytes() for path in sorted(found)}
