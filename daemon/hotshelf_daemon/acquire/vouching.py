"""Finding the signature of what was resolved, and holding the files to it. Blocks; asks for small objects only.

Where it may lie: beside the manifest, named by revision and key (`hotshelf push --sign`); as `model.sig` among the files
(model-signing's own place), which is also where a folder's single files look; or as KEY.sig beside one object. The first
that a trusted key made and that agrees with the files is enough.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from hotshelf_daemon.acquire.names import Want
from hotshelf_daemon.acquire.resolve import Found
from hotshelf_daemon.origin import Origin
from hotshelf_daemon.plan import Resolution
from hotshelf_daemon.provenance import MAX_SIGNATURE_BYTES, SIGNATURE, PublicKey, Unvouched, Vouched, verify
from hotshelf_daemon.publish import signature_name
from hotshelf_shared.errors import AccessDenied, IntegrityError


def vouch(origin: Origin, want: Want, found: Found, resolution: Resolution, keys: Sequence[PublicKey]) -> Vouched:
    """What one of the keys has signed, which names every file wanted, with its digest as far as that is known.

    Digests that are known only when the bytes are here must be held to it then. Raises Unvouched saying what is wrong
    with the first signature there is, or that there is none; AccessDenied, OriginUnavailable.
    """
    refusal: Unvouched | None = None
    denied: AccessDenied | None = None
    for key in dict.fromkeys(_places(want.source.path, found, keys)):
        try:
            if (data := origin.read(key, MAX_SIGNATURE_BYTES)) is not None:
                return _checked(verify(data, keys, f"s3://{want.source.authority}/{key}"), want, found, resolution)
        except IntegrityError as error:
            refusal = refusal or _unvouched(error)
        except AccessDenied as error:
            denied = error  # without leave to list, S3 answers 403 for what is not there
    raise refusal or denied or Unvouched(f"{want.source} is not signed")


def _unvouched(error: IntegrityError) -> Unvouched:
    """An answer of the origin that cannot be a signature (too large, say) is none."""
    return error if isinstance(error, Unvouched) else Unvouched(error.message)


def _places(path: str, found: Found, keys: Sequence[PublicKey]) -> Iterator[str]:
    """Keys of objects that may be the signature."""
    if found.kind == "file":
        yield f"{path}.sig"
        yield f"{path.rpartition('/')[0]}/{SIGNATURE}".lstrip("/")
        return
    folder = f"{path}/" if path else ""
    if found.revision is not None:
        yield from (f"{folder}{signature_name(found.revision, key)}" for key in keys)
    yield from (file.object.key for file in found.files if file.path == SIGNATURE)
    if found.revision is not None:
        yield f"{folder}{SIGNATURE}"


def _checked(vouched: Vouched, want: Want, found: Found, resolution: Resolution) -> Vouched:
    if found.kind == "file":
        vouched = replace(vouched, statement=vouched.statement.of_one(found.files[0].path))
    else:
        vouched.statement.check_whole((file.path for file in found.files), want.source)
    vouched.statement.check({file.path: file.digest for file in resolution.files}, want.source)
    return vouched
