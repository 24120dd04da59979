"""Archives as an attacker writes them: any manifest, any bytes, in the form that `unpack` reads."""

from __future__ import annotations

import io
import json
import tarfile
import zlib
from collections.abc import Iterable, Mapping
from typing import Any

from hotshelf.archive.form import LENGTH_BYTES, MAGIC
from tests.objects import Digest, Tree


def entry(data: bytes) -> dict[str, Any]:
    return {"digest": Digest.of(data), "size": len(data)}


def manifest_text(files: Mapping[str, Mapping[str, Any]]) -> bytes:
    body = {"files": dict(files), "version": 1}
    return json.dumps(body, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def put_together(manifest: bytes, body: bytes, *, level: int = 1) -> bytes:
    return MAGIC + len(manifest).to_bytes(LENGTH_BYTES, "big") + manifest + zlib.compress(body, level)


def archive_of(tree: Tree) -> bytes:
    """An honest one."""
    files = {path: entry(data) for path, data in tree.items()}
    return put_together(manifest_text(files), b"".join(tree[path] for path in sorted(tree)))


def archive_naming(paths: Iterable[str], data: bytes = b"x") -> bytes:
    """The same bytes under each of these names."""
    listed = sorted(paths)
    return put_together(manifest_text({path: entry(data) for path in listed}), data * len(listed))


def tar_of(*members: tarfile.TarInfo, data: bytes = b"x" * 8, mode: str = "w", **form: Any) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode, **form) as tar:  # type: ignore[call-overload]
        for member in members:
            member.size = len(data) if member.isreg() else 0
            tar.addfile(member, io.BytesIO(data) if member.isreg() else None)
    return out.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, **more: Any) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type = kind
    for field, value in more.items():
        setattr(info, field, value)
    return info


#: Row 80 of the catalogue, as tar files.
TARS: dict[str, bytes] = {
    "an honest tar": tar_of(member("a")),
    "a link, then a file through it": tar_of(member("l", tarfile.SYMTYPE, linkname="/tmp"), member("l/evil")),
    "a hard link": tar_of(member("h", tarfile.LNKTYPE, linkname="../../etc/passwd")),
    "out of the folder": tar_of(member("../evil")),
    "an absolute name": tar_of(member("/tmp/evil")),
    "a device": tar_of(member("d", tarfile.CHRTYPE, devmajor=1, devminor=5)),
    "a pipe": tar_of(member("p", tarfile.FIFOTYPE)),
    "a setuid program": tar_of(member("s", mode=0o4755)),
    "a file of holes": tar_of(
        member("sparse", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)}),
        format=tarfile.PAX_FORMAT,
    ),
    "the same name twice": tar_of(member("a"), member("a")),
    "100,000 members in a hundred tars": tar_of(*(member(f"{number}") for number in range(1_000))) * 100,
    "compressed": tar_of(member("a"), mode="w:gz"),
}
