"""For programs that know nothing of us: `env` prints what they need to read the shelf."""

from __future__ import annotations

import json
import os
import shlex

import click

from hotshelf.cli.output import Output, table
from hotshelf.cli.verb import client, verb


@verb("env", example='eval "$(hotshelf env --shell)" && vllm serve shelf/llm')
@click.option("--shell", "form", flag_value="shell", help="As lines that a shell can eval.")
@click.option("--k8s", "form", flag_value="k8s", help="As the `env` of a container, in YAML.")
def env(out: Output, *, form: str | None) -> None:
    """Print the variables with which vLLM, transformers, diffusers and the hub's tools read what is held, and ask nobody."""
    variables = _variables(store_here())
    human = {"shell": exports, "k8s": _k8s}[form](variables) if form else table(("variable", "value"), variables.items())
    out.result(variables, human=human, quiet=human if form else exports(variables))


def store_here() -> str:
    """Where the shelf is mounted, as far as can be told: else the daemon's own path, which the client takes too."""
    given = click.get_current_context().find_root().params.get("store")
    known = given or os.environ.get("HOTSHELF_STORE") or os.environ.get("PIPELINE_STORE")
    return os.path.abspath(known or str(client().status()["store"]))


def _variables(store: str) -> dict[str, str]:
    socket = click.get_current_context().find_root().params.get("socket") or os.environ.get("HOTSHELF_SOCKET")
    ours = {"HOTSHELF_STORE": store, **({"HOTSHELF_SOCKET": os.path.abspath(socket)} if socket else {})}
    return {**ours, "HF_HUB_CACHE": f"{store}/hub", "HF_HUB_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}


def exports(variables: dict[str, str]) -> list[str]:
    """As lines that a shell can eval."""
    return [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]


def _k8s(variables: dict[str, str]) -> list[str]:
    """Values as JSON strings, which YAML reads as they are."""
    return [line for name, value in variables.items() for line in (f"- name: {name}", f"  value: {json.dumps(value)}")]


VERBS = (env,)
