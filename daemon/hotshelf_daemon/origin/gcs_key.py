"""The key of a Google service account, as `service_account_file` holds it. Only the account's name is ever told."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from typing import Any

from hotshelf_shared.errors import BadConfiguration

#: What signing needs; the rest of the file is for other programs.
_NEEDED = ("client_email", "private_key", "token_uri")
_MOST_BYTES = 64 << 10
_HINT = "Mount the JSON that `gcloud iam service-accounts keys create` writes, as it is."

Stamp = tuple[int, ...] | None


@dataclass(frozen=True, slots=True)
class ServiceAccountKey:
    """`info` is the file, parsed."""

    email: str
    info: dict[str, Any] = field(repr=False)

    def secrets(self) -> list[str]:
        """Line by line: in a log's line its ends of lines are written otherwise."""
        return [line for line in self.info["private_key"].splitlines() if not line.startswith("-")]

    @classmethod
    def read(cls, path: str) -> ServiceAccountKey:
        """Raises BadConfiguration naming the file and what is wrong with it."""
        try:
            with open(path, "rb") as file:
                data = file.read(_MOST_BYTES + 1)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "no path"
            raise _refusal(path, f"cannot be read: {reason}", "Is the Secret there and mounted?") from None
        if len(data) > _MOST_BYTES:
            raise _refusal(path, "is too large to be a key")
        try:
            info = json.loads(data)
        except (ValueError, RecursionError):  # its message would repeat the file
            raise _refusal(path, "is not JSON") from None
        if not isinstance(info, dict):
            raise _refusal(path, "is no JSON object")
        if info.get("type") != "service_account":
            hint = "Other kinds of credentials are found by GOOGLE_APPLICATION_CREDENTIALS: leave out service_account_file."
            raise _refusal(path, "is no service account's key (its type is another)", hint)
        for name in _NEEDED:
            if not isinstance(info.get(name), str) or not info[name]:
                raise _refusal(path, f"lacks {name}")
        return cls(info["client_email"], info)


def stamp_of(path: str) -> Stamp:
    """Another one when the file is another, or was written anew; None while there is none."""
    try:
        seen = os.stat(path)
    except (OSError, ValueError):
        return None
    return seen.st_dev, seen.st_ino, seen.st_mtime_ns, seen.st_size


def _refusal(path: str, what: str, hint: str = _HINT) -> BadConfiguration:
    return BadConfiguration(f"gcs.service_account_file: {path} {what}", hint=hint)
