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
#: What the libraries made of those variables when they were imported, and which of them they copied where.
_COPIES = {
    "DIFFUSERS_DISABLE_REMOTE_CODE": ("diffusers.utils.constants", "diffusers.utils.dynamic_modules_utils"),
    "HF_HUB_OFFLINE": ("huggingface_hub.constants", "diffusers.loaders.lora_base", "diffusers.utils.hub_utils"),
    "HF_HUB_DISABLE_TELEMETRY": ("huggingface_hub.constants", "diffusers.utils.hub_utils"),
}


def harden() -> None:
    """Call it before diffusers or transformers is imported; what is imported already is set right as well."""
    os.environ.update(_ENVIRONMENT)
    for name, homes in _COPIES.items():
        for home in homes:
            module = sys.modules.get(home)
            if module is not None and hasattr(module, name):
                setattr(module, name, True)
