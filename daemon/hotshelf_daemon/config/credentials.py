"""Secrets in files: one in each, or an account of S3 in one, as Truss's `data/s3_credentials.json` holds it.

Nothing that is in them is ever repeated.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from pydantic import SecretStr

from hotshelf_shared.errors import BadConfiguration

#: Truss's fields, and ours that they become.
FIELDS = {
    "aws_access_key_id": "access_key_id",
    "aws_secret_access_key": "secret_access_key",
    "aws_session_token": "session_token",
    "aws_region": "region",
}
_MAY_BE_MISSING = ("aws_session_token",)
_MOST_BYTES = 64 << 10
_MISSING = "Is the Secret there and mounted, and may this user read it?"
_HINT = (
    'Write {"aws_access_key_id": "…", "aws_secret_access_key": "…", "aws_region": "…"}, and "aws_session_token" for a lent key.'
)


def s3_credentials(path: str, setting: str) -> dict[str, str]:
    """`access_key_id`, `secret_access_key`, `region`, and `session_token` if there is one.

    Raises BadConfiguration naming the setting, the file and the field.
    """
    body, found = _json_object(path, setting), {}
    for field, ours in FIELDS.items():
        value = body.get(field)
        if not value and field in _MAY_BE_MISSING:
            continue
        if field not in body:
            raise BadConfiguration(f"{setting}: {path} has no {field}", hint=_HINT)
        if not isinstance(value, str) or not value.strip():
            raise BadConfiguration(f"{setting}: {field} in {path} is empty, or no text", hint=_HINT)
        if not value.strip().isascii() or not value.strip().isprintable():
            raise BadConfiguration(f"{setting}: {field} in {path} holds characters that none has", hint=_HINT)
        found[ours] = value.strip()
    return found


def with_file(origin: Mapping[str, Any], label: str) -> dict[str, Any]:
    """An origin of the configuration with what its `credentials_file` says; its own `region` stays. Raises BadConfiguration."""
    path = origin.get("credentials_file")
    if not path:
        return dict(origin)
    for field in (name for name in FIELDS.values() if name != "region"):
        for given in (field, f"{field}_file"):
            if origin.get(given):
                raise BadConfiguration(
                    f"origins.{label} has both credentials_file and {given}",
                    hint="Take one of them out: a key is of one account.",
                )
    found = s3_credentials(str(path), f"origins.{label}.credentials_file")
    return {**origin, **found, "region": origin.get("region") or found["region"]}


def renewed(path: str | None) -> dict[str, Any]:
    """What of an origin's settings such a file, if there is one, holds by now. Raises BadConfiguration."""
    if path is None:
        return {}
    found = s3_credentials(path, "credentials_file")
    secret = {field: SecretStr(found[field]) if field in found else None for field in ("secret_access_key", "session_token")}
    return {"access_key_id": found["access_key_id"], **secret}


def read_secret(path: str, setting: str) -> str:
    """What a file that holds one secret holds. Raises BadConfiguration naming setting and file."""
    try:
        with open(path, encoding="utf-8") as file:
            return file.read().strip()
    except (OSError, ValueError) as error:  # a path may have characters that none can have
        reason = error.strerror if isinstance(error, OSError) else "not text, or no path"
        raise BadConfiguration(f"{setting}: cannot read {path}: {reason}", hint=_MISSING) from None


def _json_object(path: str, setting: str) -> dict[str, Any]:
    try:
        with open(path, "rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except (OSError, ValueError) as error:  # a path may have characters that none can have
        reason = error.strerror if isinstance(error, OSError) else "no path"
        raise BadConfiguration(f"{setting}: cannot read {path}: {reason}", hint=_MISSING) from None
    try:
        body = json.loads(data[:_MOST_BYTES])
    except (ValueError, RecursionError):  # its message would repeat the file
        raise BadConfiguration(f"{setting}: {path} is not JSON", hint=_HINT) from None
    if not isinstance(body, dict):
        raise BadConfiguration(f"{setting}: {path} is no JSON object", hint=_HINT)
    return body
