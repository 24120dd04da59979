"""Which files may come onto the shelf, decided by name before a byte is fetched.

Files that execute are left out (pickles under any name, Python code); everything else is inert and kept. Pickle is let in
only where the operator allows it AND the source pins its content.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from hotshelf_daemon.config import Settings
from hotshelf_shared.errors import UnsafeContent
from hotshelf_shared.source import Source
from hotshelf_shared.wire import Skipped

PICKLE_ENDINGS = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
CODE_ENDINGS = (".py", ".pyc", ".pyo", ".pyw")
WEIGHT_ENDINGS = (".engine", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".pb", ".plan", ".safetensors", ".sft", ".tflite")


@dataclass(frozen=True, slots=True)
class Policy:
    """What one wish may bring in. Part of the wish's identity: another policy may make another snapshot."""

    allow_pickle: bool = False
    allow_code: bool = False
    allow_libraries: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings, source: Source) -> Policy:
        safety = settings.safety
        return cls(safety.allow_pickle and source.pinned is not None, safety.allow_code, frozenset(safety.allow_libraries))

    def reason_by_name(self, path: str) -> str | None:
        """Why a file of this name is left out; None when it may come."""
        lower = path.lower()
        if lower.endswith(CODE_ENDINGS) and not self.allow_code:
            return "python code"
        if lower.endswith(PICKLE_ENDINGS) and not self.allow_pickle:
            return "pickle by name"
        return None

    def __str__(self) -> str:
        return f"pickle={self.allow_pickle:d} code={self.allow_code:d} libraries={','.join(sorted(self.allow_libraries))}"


def check_weights_left(source: Source, kept: Iterable[str], skipped: Iterable[Skipped]) -> None:
    """Raises UnsafeContent when all that was wanted, or all the weights of it, execute."""
    kept, skipped = list(kept), list(skipped)
    weights_lost = any(skip.path.lower().endswith(PICKLE_ENDINGS + WEIGHT_ENDINGS) for skip in skipped)
    weights_left = any(path.lower().endswith(WEIGHT_ENDINGS) for path in kept)
    if skipped and (not kept or (weights_lost and not weights_left)):
        named = ", ".join(f"{skip.path} ({skip.reason})" for skip in skipped[:5])
        raise UnsafeContent(
            f"{source} has no weights that are safe to load: {named}{', …' if len(skipped) > 5 else ''}",
            hint="Convert the weights to safetensors; or allow pickle in `safety` and pin the source with @sha256:….",
            skipped=[{"path": skip.path, "reason": skip.reason} for skip in skipped[:100]],
        )
