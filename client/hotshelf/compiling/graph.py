"""The graph: what was compiled, as a bundle's second name. The same model compiled the same way has the same one anywhere."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256

_DIGEST_DIGITS = 16
_MOST_READABLE = 64


def graph_key(name: str, parts: Mapping[str, str | int | bool | None]) -> str:
    """`name` for people (a namespace, a pipeline's class), then a digest of it and of every part: ``sdxl_8a…``.

    Parts are whatever makes another graph of the same model: dtype, attention, mode, shapes, kinds of LoRAs. Nothing of the
    machine belongs here. A bundle's second name, whatever `name` is made of.
    """
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", name).strip("-.")[:_MOST_READABLE] or "graph"
    body = json.dumps({"name": name, "parts": dict(parts)}, sort_keys=True)
    return f"{readable}_{sha256(body.encode()).hexdigest()[:_DIGEST_DIGITS]}"
