"""A foundation that was dear to build becomes a pipeline snapshot: written once, handed to the daemon, loaded ever after.

Only what building changed is written; the rest are files that the shelf holds already. The bytes are the same wherever
the recipe is built: no path and no time goes into them. Nothing is visible before the daemon has verified all of it.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import tempfile
from collections.abc import Collection, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from hotshelf.client import Client
from hotshelf.pipelines import fitting, local, needs, overrides, recipes
from hotshelf.pipelines.build import Foundation
from hotshelf.pipelines.files import Files
from hotshelf.pipelines.loading import constructing, first_line
from hotshelf.pipelines.order import PipelineOrder
from hotshelf.pipelines.quiet import quietly
from hotshelf.pipelines.sharing import weight_bytes
from hotshelf_shared.errors import HotshelfError, InsufficientSpace, InvalidRequest
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.recipe import Recipe

_LIBRARIES = ("hotshelf", "torch", "diffusers", "transformers", "peft", "safetensors")


def check_possible(files: Files) -> None:
    """Raises InvalidRequest for a base that is no part of the shelf: its files are never sent to the daemon."""
    if files.base.lease is None or any(one.lease is None for one in files.components):
        raise InvalidRequest(
            "snapshot=True needs a base and components that lie on the shelf",
            hint="Push the folder to a bucket and name it there; an absolute path stays in the worker.",
        )


def save(client: Client, order: PipelineOrder, files: Files, clean: Foundation, seconds: Mapping[str, float]) -> str:
    """The key under which the daemon now has it. `clean` is nobody else's. Raises HotshelfError; then nothing is visible."""
    recipe = recipes.foundation(order, files)
    folder = Path(tempfile.mkdtemp(prefix="hotshelf-build-"))
    try:
        written = _write(clean, order, files, folder)
        for path, one in written.items():
            if not client.has_blob(one.digest):
                client.put_blob(one.digest, folder / path)
        tree = {**_kept(clean, order, files), **written}
        build = {"libraries": _versions(), "machine": platform.machine(), "seconds": dict(seconds)}
        for whole, extra in ((recipe, {}), *_with_adapters(order, files)):
            client.put_pipeline(whole.key, whole, Manifest.of({**tree, **extra}), build)
    except OSError as error:
        raise InsufficientSpace(
            f"saving the pipeline failed: {error.strerror or error}", hint=f"See {folder.parent}."
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return recipe.key


def _with_adapters(order: PipelineOrder, files: Files) -> list[tuple[Recipe, dict[str, FileEntry]]]:
    """The whole recipe, when it has adapters beside the foundation: the same tree with their files, which the shelf has."""
    if order.fuses or not files.loras or any(lora.lease is None for lora in files.loras):
        return []
    loras = {f"loras/{number}.safetensors": local.entry(lora.path) for number, lora in enumerate(files.loras)}
    return [(recipes.recipe(order, files), loras)]


def _changed(clean: Foundation, order: PipelineOrder, files: Files) -> dict[str, Any]:
    """The components whose weights are not as they lie on the shelf."""
    parts = fitting.modules_of(clean.pipe)
    if files.base.single is not None or order.quantization is not None or recipes.is_cast(order, files):
        return parts
    single = {one.name for one in files.components if one.single is not None}
    return {name: part for name, part in parts.items() if name in clean.fused | single}


def _write(clean: Foundation, order: PipelineOrder, files: Files, folder: Path) -> dict[str, FileEntry]:
    """What is new, below `folder`."""
    changed = _changed(clean, order, files)
    need = sum(weight_bytes(part) for part in changed.values())
    if shutil.disk_usage(folder).free < need:
        raise InsufficientSpace(
            f"saving the pipeline takes {need:,} bytes in {folder.parent}, which has fewer", hint="Point TMPDIR elsewhere."
        )
    with constructing, quietly():
        for name, part in changed.items():
            try:
                part.save_pretrained(str(folder / name), safe_serialization=True)
            except OSError:
                raise
            except Exception as error:
                raise HotshelfError(
                    f"{type(part).__name__} cannot be saved: {first_line(error)}", hint="Use snapshot=False."
                ) from error
    (folder / needs.INDEX).write_text(_json(_index(clean, files, changed)))
    found = [Path(at) / name for at, _, names in os.walk(folder) for name in names]
    for path in found:
        if path.suffix == ".json":
            _forget_where(path)
        elif path.suffix != ".safetensors":
            raise HotshelfError(f"{path.name} is no safetensors file: it is not handed in", hint="Use snapshot=False.")
    return {str(path.relative_to(folder)): local.entry(path) for path in sorted(found)}


def _kept(clean: Foundation, order: PipelineOrder, files: Files) -> dict[str, FileEntry]:
    """What of the snapshot lies on the shelf already, as the base and the components have it."""
    changed = _changed(clean, order, files).keys()
    there = {
        path: one
        for path, one in _plainly_named(files.description.files, order.variant).items()
        if "/" in path and needs.owner(files.index, path) not in changed | files.override_names
    }
    for one in files.components:
        if one.name not in changed:
            there |= {f"{one.name}/{path}": found for path, found in one.files.items()}
    return {path: found for path, found in there.items() if needs.owner(files.index, path) in clean.pipe.components}


def _plainly_named(tree: Mapping[str, FileEntry], variant: str | None) -> dict[str, FileEntry]:
    """A snapshot has no variants: what lies there as one of its own name goes by the plain name, in place of what has it."""
    ending, index = f".{variant}.safetensors", f".index.{variant}.json"
    shard = re.compile(rf".*\.{variant}(-\d+-of-\d+)?\.safetensors")
    own = {path for path in tree if variant is not None and (path.endswith(index) or shard.fullmatch(path))}
    folders = {path.rpartition("/")[0] for path in own}
    sharded = {path.rpartition("/")[0] for path in own if path.endswith(index)}
    named = {}
    for path, one in tree.items():
        folder = path.rpartition("/")[0]
        if path.endswith(index) and path in own:
            named[f"{path.removesuffix(index)}.index.json"] = one
        elif path in own:  # an index names its shards by the names that they have
            named[path if folder in sharded else f"{path.removesuffix(ending)}.safetensors"] = one
        elif folder not in folders or not (needs.is_weights(path) or path.endswith(".safetensors.index.json")):
            named[path] = one
    return named


def _index(clean: Foundation, files: Files, changed: Collection[str]) -> dict[str, Any]:
    """The base's own, with the components that take another's place, or that the pipeline made of what it was given."""
    parts = clean.pipe.components
    converted = [name for name in changed if overrides.is_converted(files, name, parts[name])]
    return {**files.index, **{name: overrides.entry(parts[name]) for name in (*files.override_names, *converted)}}


def _forget_where(path: Path) -> None:
    """A configuration notes the folder that it was loaded from: the same recipe must make the same bytes everywhere."""
    body = json.loads(path.read_bytes())
    if isinstance(body, dict) and body.pop("_name_or_path", None) is not None:
        path.write_text(_json(body))


def _json(body: object) -> str:
    return json.dumps(body, indent=2, sort_keys=True) + "\n"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
