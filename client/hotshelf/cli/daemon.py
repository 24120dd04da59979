"""The daemon's side: `health`, `doctor`, `config`, `push`. All but `health` need the daemon's package on this machine."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from hotshelf.cli import progress
from hotshelf.cli.output import Output, size, table
from hotshelf.cli.verb import client, needs_daemon, verb

if TYPE_CHECKING:
    from hotshelf_daemon.config import Loaded

EXIT_DEGRADED, EXIT_FOUND_SOMETHING = 1, 10
_SIGN = "Sign it with this elliptic-curve key (PEM); if it is encrypted, HOTSHELF_SIGN_PASSWORD_FILE names its password's file."
CONFIG = click.option("--config", "config_file", metavar="FILE", help="YAML configuration (HOTSHELF_CONFIG).")


@verb("health", example="hotshelf health --format quiet && echo ready")
@click.option("--degraded-ok", is_flag=True, help="Exit code 0 also when it is degraded: it serves what it holds.")
def health(out: Output, *, degraded_ok: bool) -> int:
    """Ask the daemon whether all is well. Exit code 0 when it is, 1 when it is degraded, 69 when nobody answers."""
    found = client().health()
    checks = [(one["check"], "ok" if one["ok"] else "FAILED") for one in found.get("checks", ())]
    out.result(found, human=[found["status"], *(f"  {name}: {state}" for name, state in checks)])
    return 0 if found["status"] == "ok" or degraded_ok else EXIT_DEGRADED


@verb("doctor", example="hotshelf doctor --config /etc/hotshelf/config.yaml")
@CONFIG
def doctor(out: Output, *, config_file: str | None) -> int:
    """Examine socket, store, index, room and origins, and say how to mend what is wrong. Exit code 10 if anything is."""
    settings = _load(config_file).settings
    from hotshelf_daemon.doctor import examine

    findings = examine(settings)
    body = [{"level": f.level, "check": f.check, "message": f.message, "fix": f.fix} for f in findings]
    human = [line for f in findings for line in (f"{f.level} {f.check}: {f.message}", f"  {f.fix}")]
    quiet = [f"{f.check}: {f.message}" for f in findings]
    out.result({"findings": body}, human=human or ["nothing is wrong"], quiet=quiet)
    return EXIT_FOUND_SOMETHING if findings else 0


@click.group("config", epilog="\b\nExample:\n  hotshelf config show")
def config() -> None:
    """Look at the configuration: flag > environment > YAML file > default."""


@verb("show", example="hotshelf config show --config shelf.yaml")
@CONFIG
def show(out: Output, *, config_file: str | None) -> None:
    """Print each value and where it came from. Secrets are masked."""
    rows = _load(config_file).rows()
    body = [{"key": key, "value": value, "from": where} for key, value, where in rows]
    out.result({"settings": body}, human=table(("key", "value", "from"), rows), quiet=(f"{k}={v}" for k, v, _ in rows))


@verb("validate", example="hotshelf config validate --config shelf.yaml")
@CONFIG
def validate(out: Output, *, config_file: str | None) -> None:
    """Check the configuration without using it, and say what of it is left out. Exit code 78 when it cannot be used."""
    warnings = _load(config_file).warnings
    out.result({"valid": True, "warnings": warnings}, human=["the configuration is valid"])
    for warning in warnings:
        out.note(warning)


@verb("push", example="hotshelf push ./sdxl s3://weights/sdxl --sign key.pem")
@click.argument("directory", metavar="DIR", type=click.Path(exists=True, file_okay=False))
@click.argument("source", metavar="s3://BUCKET/PREFIX")
@click.option("--tree", is_flag=True, help="Also write the files under their plain names, for other tools.")
@click.option("--sign", "key_file", metavar="KEYFILE", type=click.Path(exists=True, dir_okay=False), help=_SIGN)
@CONFIG
def push(out: Output, *, directory: str, source: str, tree: bool, key_file: str | None, config_file: str | None) -> None:
    """Publish DIR: its files named by content, then the manifest that makes them one revision."""
    settings = _load(config_file).settings
    from hotshelf_daemon.config import sign_password
    from hotshelf_daemon.provenance import SigningKey
    from hotshelf_daemon.publish import publish

    key = SigningKey.load(key_file, sign_password(os.environ)) if key_file is not None else None
    with progress.shown(out) as show_progress:
        report = publish(directory, source, settings, tree=tree, key=key, on_progress=show_progress)
    body = {
        "source": report.source,
        "revision": report.revision,
        "files": report.files,
        "size": report.size,
        "uploaded_files": report.uploaded_files,
        "uploaded_bytes": report.uploaded_bytes,
        "signed_by": report.signed_by,
        "left_out": [{"path": one.path, "reason": one.reason} for one in report.left_out],
    }
    sent = f"{report.uploaded_files} uploads, {size(report.uploaded_bytes)}"
    human = [f"{report.source}@{report.revision}", f"{report.files} files, {size(report.size)}; {sent}"]
    if report.signed_by is not None:
        human.append(f"signed with the key {report.signed_by[:16]}")
    out.result(body, human=human, quiet=[f"{report.source}@{report.revision}"])
    for one in report.left_out:
        out.note(f"{one.path} will be left out of every pull: {one.reason}")


def _load(config_file: str | None) -> Loaded:
    """The daemon's settings as this command line sees them."""
    try:
        import hotshelf_daemon.origin  # noqa: F401 - the part of the daemon with the most to install
        from hotshelf_daemon.config import load
    except ModuleNotFoundError as missing:
        raise needs_daemon(missing) from missing
    given = (click.get_current_context().find_root().params.get(name) for name in ("socket", "store"))
    socket, store = given
    return load({"config": config_file, "socket": socket, "store": store}, os.environ)


config.add_command(show)
config.add_command(validate)
VERBS = (health, doctor, config, push)
