"""Truss: `model_cache:` of a `config.yaml`, read and held on the shelf.

    from hotshelf.adapters.truss import acquire_model_cache

    with acquire_model_cache("config.yaml") as cache:
        cache["stabilityai/stable-diffusion-xl-base-1.0"].path

Reading YAML needs PyYAML, which Truss itself brings; nothing else here is more than the standard library.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, Self

from hotshelf.acquisition import OnProgress
from hotshelf.client import Client
from hotshelf.client import default as default_client
from hotshelf.lease import Lease, Leases
from hotshelf_shared.errors import BadConfiguration
from hotshelf_shared.truss import Cached, ModelCache

__all__ = ["Held", "acquire_model_cache", "read", "read_config"]

MAX_CONFIG_BYTES = 4 << 20


class Held(Mapping[str, Lease]):
    """What a `model_cache:` names, leased: names as Truss writes them, without a scheme, to leases.

    Several revisions or folders of one repository are called as `ModelCache` says. As a context it ends with `release`.
    """

    def __init__(self, names: tuple[str, ...], leases: Leases | None) -> None:
        self._leases = leases
        self._by_name = dict(zip(names, leases or (), strict=True))

    def release(self) -> None:
        """Lets go of all files. Never raises."""
        if self._leases is not None:
            self._leases.release()

    def __getitem__(self, name: str) -> Lease:
        return self._by_name[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"<Held {self._by_name!r}>"


def acquire_model_cache(
    config: str | os.PathLike[str] = "config.yaml",
    *,
    timeout: float | None = 600,
    on_progress: OnProgress | None = None,
    client: Client | None = None,
) -> Held:
    """Waits until everything that `config` caches is on the shelf, all or nothing, and holds it there.

    Credentials are the daemon's own. Raises BadConfiguration when the file cannot be used, and whatever `Client.acquire` does.
    """
    entries = read(config).entries
    if not entries:
        return Held((), None)
    asker = client if client is not None else default_client
    leases = asker.acquire([_wanted(one) for one in entries], timeout=timeout, on_progress=on_progress)
    return Held(tuple(one.name for one in entries), leases)


def _wanted(one: Cached) -> dict[str, Any]:
    allow, ignore = one.patterns.allow, one.patterns.ignore
    patterns = {"allow_patterns": None if allow is None else [*allow], "ignore_patterns": [*ignore] or None}
    return {"source": str(one.source), **{key: globs for key, globs in patterns.items() if globs is not None}}


def read(config: str | os.PathLike[str] = "config.yaml") -> ModelCache:
    """`model_cache:`, or `hf_cache:` as it was called, of a Truss's `config.yaml`. Raises BadConfiguration."""
    return ModelCache.of(read_config(config))


def read_config(config: str | os.PathLike[str]) -> dict[str, Any]:
    """The whole file. Raises BadConfiguration, which never repeats a line of it: secrets may stand there."""
    try:
        import yaml
    except ModuleNotFoundError as missing:
        hint = "pip install pyyaml; hotshelf's extra [daemon] brings it too."
        raise BadConfiguration("reading a Truss config.yaml needs PyYAML, which is not installed", hint=hint) from missing
    path = os.fspath(config)
    try:
        with open(path, encoding="utf-8") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except (OSError, ValueError) as error:  # no text, or a path that can be none
        reason = error.strerror if isinstance(error, OSError) else "not text, or no path"
        raise BadConfiguration(f"cannot read {path}: {reason}", hint="Name the config.yaml of a Truss.") from None
    if len(text) > MAX_CONFIG_BYTES:
        raise BadConfiguration(f"{path} is too large for a configuration", hint="Name the config.yaml of a Truss.")
    try:
        body = yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        line = f"line {error.problem_mark.line + 1}" if error.problem_mark is not None else "a line"
        raise BadConfiguration(f"{path} is not YAML: {line} cannot be read", hint="Correct it there.") from None
    except (yaml.YAMLError, ValueError, OverflowError, RecursionError):
        raise BadConfiguration(f"{path} is not YAML", hint="Name the config.yaml of a Truss.") from None
    if not isinstance(body, dict) or not all(isinstance(key, str) for key in body):
        raise BadConfiguration(f"{path} is no mapping", hint="Name the config.yaml of a Truss.")
    return body
