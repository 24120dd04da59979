"""What a caller of `load_pipeline` asks for, checked before anything is fetched or imported."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Self

from hotshelf.pipelines import checks
from hotshelf_shared.errors import InvalidRequest
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.wire import nearest

LORA_FIELDS = ("path", "scale")
COMPONENT_FIELDS = ("source", "subfolder")


@dataclass(frozen=True, slots=True)
class LoraOrder:
    """One LoRA: where its file is, and how much of it, for all components or for each."""

    path: str
    scale: float | tuple[tuple[str, float], ...] = 1.0

    @classmethod
    def parse(cls, value: object) -> Self:
        body = {"path": value} if isinstance(value, str) else value
        if not isinstance(body, Mapping):
            raise InvalidRequest(f"a LoRA is a path or {{path, scale}}, not {type(value).__name__}")
        for name in body:
            if name not in LORA_FIELDS:
                raise InvalidRequest(f"a LoRA has an unknown field {str(name)[:80]!r}", hint=nearest(str(name), LORA_FIELDS))
        if not isinstance(body.get("path"), str) or not body["path"]:
            raise InvalidRequest("a LoRA has no path", hint='Write {"path": "s3://BUCKET/KEY.safetensors", "scale": 0.7}.')
        path = checks.where(body["path"], "a LoRA's path")
        return cls(path, checks.scale(body.get("scale", 1.0), path))

    @property
    def weight(self) -> float | dict[str, float]:
        """The scale as diffusers wants it."""
        return dict(self.scale) if isinstance(self.scale, tuple) else self.scale


@dataclass(frozen=True, slots=True)
class ComponentOrder:
    """A component that comes from elsewhere: a folder as `save_pretrained` writes it, or one weight file."""

    name: str
    source: str
    subfolder: str = ""

    @classmethod
    def parse(cls, name: object, value: object) -> Self:
        body = {"source": value} if isinstance(value, str) else value
        if not isinstance(name, str) or not name.isidentifier():
            raise InvalidRequest(f"{str(name)[:80]!r} is no component's name", hint="vae, text_encoder, scheduler, …")
        if not isinstance(body, Mapping):
            raise InvalidRequest(f"the component {name} is a source or {{source, subfolder}}, not {type(value).__name__}")
        for one in body:
            if one not in COMPONENT_FIELDS:
                hint = nearest(str(one), COMPONENT_FIELDS)
                raise InvalidRequest(f"the component {name} has an unknown field {str(one)[:80]!r}", hint=hint)
        subfolder = body.get("subfolder", "")
        if not isinstance(subfolder, str) or subfolder.startswith("/") or ".." in subfolder.split("/"):
            raise InvalidRequest(f"the subfolder of {name} is {subfolder!r}, which is no relative path")
        return cls(name, checks.where(body.get("source"), f"the source of {name}"), subfolder.strip("/"))


@dataclass(frozen=True, slots=True)
class PipelineOrder:
    """All of `load_pipeline`'s arguments, in their one normal form. `dtype` and `device` are None for the library's own.

    `quantization` says what `quantization_config` holds, which goes to diffusers as it is. `snapshot` None is ``auto``.
    """

    source: str
    loras: tuple[LoraOrder, ...] = ()
    device: str | None = None
    dtype: str | None = None
    attention: str = "auto"
    compile: str | None = None
    lora_mode: str = "adapters"
    snapshot: bool | None = None
    components: tuple[ComponentOrder, ...] = ()
    config: str | None = None
    pipeline_class: str | None = None
    quantization: str | None = None
    device_map: str | None = None
    offload: str | None = None
    patterns: Patterns | None = None
    revision: str | None = None
    variant: str | None = None
    timeout_s: float = 600.0
    quantization_config: Any = field(default=None, compare=False, repr=False)

    @classmethod
    def of(
        cls,
        source: str,
        *,
        loras: Iterable[object] = (),
        device: object = None,
        dtype: object = None,
        attention: str = "auto",
        compile: object = False,  # noqa: A002  the contract's word
        lora_mode: str = "adapters",
        snapshot: object = "auto",
        components: Mapping[str, object] | None = None,
        config: str | None = None,
        pipeline_class: str | None = None,
        quantization_config: object = None,
        device_map: str | None = None,
        offload: str | None = None,
        allow_patterns: object = None,
        ignore_patterns: object = None,
        revision: str | None = None,
        variant: str | None = None,
        timeout: float | None = 600.0,
    ) -> Self:
        """Raises InvalidRequest naming the argument that cannot be meant."""
        checks.where(source, "the pipeline's source")
        if isinstance(loras, str | Mapping) or not isinstance(loras or (), Iterable):
            raise InvalidRequest("loras is a list", hint='Write loras=[{"path": …, "scale": …}].')
        if components is not None and not isinstance(components, Mapping):
            raise InvalidRequest("components is a mapping of name → source", hint='Write {"vae": "s3://BUCKET/PREFIX"}.')
        if variant is not None and not (isinstance(variant, str) and variant.isalnum()):
            raise InvalidRequest(f"variant {variant!r} is not a word such as fp16")
        for name, value in (("revision", revision), ("device_map", device_map)):
            if value is not None and not isinstance(value, str):
                raise InvalidRequest(f"{name} is a word, not {type(value).__name__}", hint=f"Leave `{name}` out, perhaps.")
        if device_map is not None and device is not None:
            raise InvalidRequest("device and device_map exclude each other", hint="Give one of them.")
        patterns = Patterns.parse(allow_patterns, ignore_patterns)
        return cls(
            source=source,
            loras=tuple(LoraOrder.parse(one) for one in loras or ()),
            device=checks.device(device),
            dtype=checks.dtype(dtype),
            attention=checks.word(attention, "attention", checks.ATTENTION),
            compile=checks.compile_mode(compile),
            lora_mode=checks.word(lora_mode, "lora_mode", checks.LORA_MODES),
            snapshot=checks.snapshot(snapshot),
            components=tuple(ComponentOrder.parse(name, one) for name, one in sorted((components or {}).items())),
            config=None if config is None else checks.where(config, "config"),
            pipeline_class=checks.identifier(pipeline_class, "pipeline_class"),
            quantization=checks.quantization(quantization_config),
            device_map=device_map,
            offload=None if offload is None else checks.word(offload, "offload", checks.OFFLOADS),
            patterns=patterns or None,
            revision=revision,
            variant=variant,
            timeout_s=checks.timeout(timeout),
            quantization_config=quantization_config,
        )

    @property
    def base_device(self) -> str:
        """Where its base weights are kept: None is the library's default, which is the CPU."""
        return self.device or "cpu"

    @property
    def fuses(self) -> bool:
        return self.lora_mode == "fuse" and bool(self.loras)

    @property
    def wish(self) -> PipelineOrder:
        """What of it says which files are wanted: equal wishes are answered with the same files."""
        return replace(self, device=None, dtype=None, attention="auto", compile=None, timeout_s=0.0, quantization_config=None)
