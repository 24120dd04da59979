"""Pipelines larger than the accelerator: diffusers' offload modes, by name."""

from __future__ import annotations

from typing import Any

from hotshelf.pipelines.loading import first_line
from hotshelf_shared.errors import InvalidRequest


def offload(pipe: Any, mode: str | None) -> None:
    """``model`` moves whole components, ``sequential`` single layers, ``group`` groups of layers. Raises InvalidRequest.

    The pipeline's parameters are its own objects, so that moving them moves nobody else's.
    """
    if mode is None:
        return
    try:
        if mode == "model":
            pipe.enable_model_cpu_offload()
        elif mode == "sequential":
            pipe.enable_sequential_cpu_offload()
        else:
            import torch

            onload = torch.device("cuda" if torch.cuda.is_available() else "cpu")
            pipe.enable_group_offload(onload_device=onload, offload_type="leaf_level")
    except Exception as error:
        raise InvalidRequest(
            f"offload={mode!r} does not work here: {first_line(error)}", hint="It needs an accelerator; leave `offload` out."
        ) from error
