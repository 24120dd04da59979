"""What a snapshot's JSON may ask a loader to do: nothing that imports code from outside the known libraries."""

from __future__ import annotations

import json
from typing import Any

from hotshelf_daemon.policy.rules import Policy
from hotshelf_shared.errors import UnsafeContent

MAX_DOCUMENT_BYTES = 4 << 20
_LIBRARIES = frozenset({"diffusers", "transformers", "tokenizers", "peft", "onnxruntime", "optimum"})
#: Modules of diffusers.pipelines, which model_index.json names without their package (diffusers 0.42).
_PIPELINE_MODULE_NAMES = """
    allegro amused animatediff audioldm audioldm2 aura_flow blip_diffusion bria chroma cogvideo cogview3 cogview4
    consistency_models consisid controlnet controlnet_hunyuandit controlnet_sd3 controlnet_xs cosmos ddim ddpm
    deepfloyd_if deprecated dit easyanimate flux framepack free_noise hidream_image hunyuan_image hunyuan_video hunyuandit
    i2vgen_xl kandinsky kandinsky2_2 kandinsky3 kandinsky5 kolors latent_consistency_models latent_diffusion latte
    ledits_pp ltx lumina lumina2 marigold mochi musicldm omnigen pag paint_by_example pia pixart_alpha prx qwenimage sana
    semantic_stable_diffusion shap_e skyreels_v2 stable_audio stable_cascade stable_diffusion stable_diffusion_3
    stable_diffusion_attend_and_excite stable_diffusion_diffedit stable_diffusion_gligen stable_diffusion_k_diffusion
    stable_diffusion_ldm3d stable_diffusion_panorama stable_diffusion_safe stable_diffusion_sag stable_diffusion_xl
    stable_video_diffusion t2i_adapter text_to_video_synthesis unclip unidiffuser visualcloze wan wuerstchen
"""
_PIPELINE_MODULES = frozenset(_PIPELINE_MODULE_NAMES.split())


def is_document(path: str, size: int) -> bool:
    """Whether `check` wants to see this file: vocabularies may be large, and name nothing to import."""
    return path.endswith(".json") and (size <= MAX_DOCUMENT_BYTES or path.endswith(("config.json", "model_index.json")))


def check(path: str, data: bytes, policy: Policy) -> None:
    """Raises UnsafeContent naming the file and the field. What is no JSON object asks for nothing."""
    if policy.allow_code:
        return
    if len(data) > MAX_DOCUMENT_BYTES:
        raise _refusal(path, f"a configuration of {len(data):,} bytes is not looked into")
    try:
        body = json.loads(data)
    except (ValueError, RecursionError):
        return
    if not isinstance(body, dict):
        return
    if "auto_map" in body:
        raise _refusal(path, "auto_map names code to import")
    if isinstance(body.get("_class_name"), list):
        raise _refusal(path, "_class_name is a list: it names code to import")
    if path.rpartition("/")[2] == "model_index.json":
        _check_libraries(path, body, policy)


def _check_libraries(path: str, body: dict[str, Any], policy: Policy) -> None:
    for component, value in body.items():
        if not isinstance(value, list) or component.startswith("_"):
            continue
        library = value[0] if value else None
        known = _LIBRARIES | _PIPELINE_MODULES | policy.allow_libraries
        if library is None or (isinstance(library, str) and library in known):
            continue
        raise _refusal(path, f"{component} comes from the library {str(library)[:80]!r}")


def _refusal(path: str, why: str) -> UnsafeContent:
    return UnsafeContent(
        f"{path}: {why}",
        hint="Remove it and publish again; an operator who trusts it can allow it under `safety`.",
        path=path,
    )
