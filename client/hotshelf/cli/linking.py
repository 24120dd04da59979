"""`hotshelf link`: the shelf's names, as links in a folder that another program reads."""

from __future__ import annotations

import json
import os
import shlex
from typing import Any

import click

from hotshelf.cli.consumers import exports, store_here
from hotshelf.cli.output import Output, table
from hotshelf.cli.verb import verb
from hotshelf.linking import shelved, views
from hotshelf.linking.links import Change, Deed, Directory, decide, decide_file
from hotshelf.linking.views import View
from hotshelf_shared.errors import InvalidRequest

COMFYUI_FILE = "extra_model_paths.yaml"
_HEAD = "# Written by `hotshelf link`; without this line it stays as you make it."


class Said(click.ParamType[tuple[str, str]]):
    """A name, and what is to be seen in it: ``NAME=KIND``."""

    name = "name=kind"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str]:
        name, _, kind = str(value).rpartition("=")
        if not name or kind not in views.KINDS:
            self.fail(f"{value!r} is no NAME=KIND with one of {', '.join(views.KINDS)}", param, ctx)
        return name, kind


@verb("link", example="hotshelf link --view comfyui /opt/shelf-models")
@click.option("--view", required=True, type=click.Choice(["hf", "comfyui", "a1111"]), help="Whose layout DIR is to have.")
@click.option("--as", "said", metavar="NAME=KIND", type=Said(), multiple=True, help="What NAME is, where it cannot be told.")
@click.option("--dry-run", is_flag=True, help="Only say what would change.")
@click.argument("directory", metavar="DIR", type=click.Path(file_okay=False))
def link(out: Output, *, view: str, said: tuple[tuple[str, str], ...], dry_run: bool, directory: str) -> None:
    """Fill DIR with links to what is held, for programs that know nothing of hotshelf.

    What DIR has beside stays. Links follow the shelf by themselves when a bucket changes; run this again when names come or go.
    """
    store, path = store_here(), os.path.abspath(directory)
    _check(path, store)
    if view == "hf" and said:
        raise InvalidRequest("--as sorts files into folders of their kind", hint="A Hugging Face cache has none: leave it out.")
    wanted = _wanted(view, store, dict(said))
    at = Directory(path, {"hf": ("",), "comfyui": views.KINDS, "a1111": tuple(views.A1111.values())}[view])
    changes = decide(wanted.links, at.links(wanted.links), store)
    if view == "comfyui":
        changes += decide_file(COMFYUI_FILE, comfyui_text(path), at.text(COMFYUI_FILE))
    if not dry_run:
        at.change(changes)
    _say(out, view, path, changes, wanted, dry_run=dry_run)


def _check(directory: str, store: str) -> None:
    shelf = os.path.realpath(store)
    if os.path.commonpath([os.path.realpath(directory), shelf]) == shelf:
        raise InvalidRequest(f"{directory} lies on the shelf", hint="Name a folder of your own.")
    if not f"{directory}{store}".isprintable() or "$" in directory:
        raise InvalidRequest(
            f"{directory!r} holds what other programs would read as something else", hint="Name another folder."
        )


def _wanted(view: str, store: str, said: dict[str, str]) -> View:
    if view == "hf":
        return views.repositories(store, shelved.repositories(store))
    return views.sorted_by_kind(shelved.names(store), views.COMFYUI if view == "comfyui" else views.A1111, said)


def comfyui_text(directory: str) -> str:
    """What ComfyUI reads; JSON strings are YAML as well. Every folder, so that ComfyUI need not be told of the next one."""
    base = json.dumps(directory, ensure_ascii=False)
    return "\n".join([_HEAD, "hotshelf:", f"  base_path: {base}", *(f"  {kind}: {kind}" for kind in views.KINDS), ""])


def _flags(view: str, directory: str, links: list[str]) -> list[str]:
    """By which the program is told of the folder."""
    if view == "comfyui":
        return ["--extra-model-paths-config", os.path.join(directory, COMFYUI_FILE)]
    return views.flags(directory, links) if view == "a1111" else []


def _say(out: Output, view: str, directory: str, changes: list[Change], wanted: View, *, dry_run: bool) -> None:
    done = [change for change in changes if change.deed is not Deed.LEAVE]
    left = [change.path for change in changes if change.deed is Deed.LEAVE]
    links = {path: target for path, target in wanted.links.items() if path not in left}
    variables = {"HF_HUB_CACHE": directory, "HF_HUB_OFFLINE": "1"} if view == "hf" else {}
    flags = _flags(view, directory, [*links])
    use = [*exports(variables), *filter(None, [shlex.join(flags)])]
    for path in left:
        out.note(f"left {os.path.join(directory, path)}: it is not ours")
    for name, why in sorted(wanted.without.items()):
        out.note(f"nothing of {name}: {why}")
    if dry_run:
        out.note("nothing was changed")
    body = {
        "directory": directory,
        "dry_run": dry_run,
        "changes": [{"change": one.deed.value, "path": one.path} for one in done],
        "left": left,
        "links": links,
        "without": wanted.without,
        "variables": variables,
        "flags": flags,
    }
    rows = [(one.deed.value, one.path, one.target if os.path.isabs(one.target) else "") for one in done]
    out.result(body, human=[*table(("change", "path", "leads to"), rows), *use], quiet=use)


VERBS = (link,)
