"""The environment in which diffusers is imported: no code from a repository, no word to a hub, whatever a snapshot says."""

from __future__ import annotations

import os
import sys

_ENVIRONMENT = {
    "DIFFUSERS_DISABLE_REMOTE_CODE": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TRANSFORMERS_OFFLINE": "1",
}


def harden() -> None:
    """Call it before diffusers or transformers is imported; the constants of an imported hub library are set as well."""
    os.environ.update(_ENVIRONMENT)
    constants = sys.modules.get("huggingface_hub.constants")
    if constants is not None:
        constants.HF_HUB_OFFLINE = True  # type: ignore[attr-defined]
        constants.HF_HUB_DISABLE_TELEMETRY = True  # type: ignore[attr-defined]
