"""What is signed: an in-toto statement that names every file of a model with its digest. Pure.

Its predicate is OpenSSF Model Signing's, version 1.0 (github.com/sigstore/model-transparency, `_signing/signing.py`): the
files under `resources`, and as the one subject the sha256 over their digests in that order. Names are compared with paths
and never become one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import IntegrityError, InvalidRequest
from hotshelf_shared.manifest import MAX_FILES, Manifest, parse_json

#: The signature among the files it signs, and the one name that it cannot sign.
SIGNATURE = "model.sig"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
#: What a push leaves beside plain names: other verifiers of a downloaded prefix are told to look away.
_BESIDE = (SIGNATURE, "hotshelf.json", "blobs", "manifests")
#: How model-signing names the file when it signs one file by itself.
_ITSELF = "."


class Unvouched(IntegrityError):
    """No key that is trusted for this origin vouches for the files."""

    default_hint = "Sign what is there: `hotshelf push DIR s3://… --sign KEYFILE`, with a key that the origin's `keys` lists."


@dataclass(frozen=True, slots=True)
class Statement:
    """Path → digest, as signed."""

    files: Mapping[str, Digest]

    @classmethod
    def of(cls, tree: Manifest) -> Self:
        return cls({path: entry.digest for path, entry in tree.items()})

    @classmethod
    def parse(cls, payload: bytes) -> Self:
        """Raises Unvouched for what is no such statement, or does not agree with itself."""
        body = parse_json(payload, "the signed statement", Unvouched)
        try:
            if (body["_type"], body["predicateType"]) != (STATEMENT, PREDICATE):
                raise _refusal(f"is {body['_type']!r:.80} of {body['predicateType']!r:.80}")
            (subject,) = body["subject"]
            method, hash_type = (body["predicate"]["serialization"][name] for name in ("method", "hash_type"))
            if (method, hash_type) != ("files", "sha256"):
                raise _refusal(f"signs {method!r:.40} by {hash_type!r:.40}, not files by sha256")
            resources = body["predicate"]["resources"]
            if len(resources) > MAX_FILES:
                raise _refusal(f"names {len(resources):,} files; {MAX_FILES:,} is the most")
            files = dict(map(_named, resources))
            root = subject["digest"]["sha256"]
        except (KeyError, TypeError, ValueError, InvalidRequest) as error:
            raise _refusal(f"is malformed ({type(error).__name__}: {str(error)[:80]})") from error
        if len(files) != len(resources):
            raise _refusal("names a file twice")
        if root != _root(files.values()):
            raise _refusal("does not agree with itself: its subject is not the digest of its files")
        return cls(files)

    def payload(self, name: str) -> bytes:
        """The statement as JSON; `name` tells people which model it is and is not checked by anybody."""
        ignored = [beside for beside in _BESIDE if not any(f"{path}/".startswith(f"{beside}/") for path in self.files)]
        body = {
            "_type": STATEMENT,
            "subject": [{"name": name, "digest": {"sha256": _root(self.files.values())}}],
            "predicateType": PREDICATE,
            "predicate": {
                "serialization": {
                    "method": "files", "hash_type": "sha256", "allow_symlinks": False, "ignore_paths": ignored,
                },
                "resources": [
                    {"name": path, "algorithm": "sha256", "digest": digest.hex} for path, digest in self.files.items()
                ],
            },
        }  # fmt: skip
        return json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()

    def of_one(self, name: str) -> Statement:
        """The same about one file, by that name: model-signing calls a file that is signed by itself `.`."""
        return Statement({name: self.files[_ITSELF]}) if set(self.files) == {_ITSELF} else self

    def check(self, files: Mapping[str, Digest | None], source: object) -> None:
        """Every file must be named, with its digest where that is known already. Raises Unvouched naming the first other."""
        for path, digest in files.items():
            signed = self.files.get(path)
            if signed is None:
                raise Unvouched(f"{source}: {path} is not among the files that were signed", path=path)
            if digest not in (None, signed):
                raise Unvouched(f"{source}: {path} has the digest {digest}; {signed} was signed", path=path)

    def check_whole(self, present: Iterable[str], source: object) -> None:
        """Nothing signed may have been taken away, hidden files apart, which a push leaves out. Raises Unvouched."""
        for path in sorted(self.files.keys() - set(present)):
            if not any(part.startswith(".") for part in path.split("/")):
                raise Unvouched(f"{source}: {path} was signed and is not there", path=path)


def _named(resource: Any) -> tuple[str, Digest]:
    if not isinstance(resource["name"], str) or resource["algorithm"] != "sha256":
        raise ValueError("a resource without a name or a sha256")
    return resource["name"], Digest.from_hex(resource["digest"])


def _root(digests: Iterable[Digest]) -> str:
    return hashlib.sha256(b"".join(bytes.fromhex(digest.hex) for digest in digests)).hexdigest()


def _refusal(why: str) -> Unvouched:
    return Unvouched(
        f"the signed statement {why}", hint="Sign it with `hotshelf push --sign`, or with model-signing 1.0 or newer."
    )
