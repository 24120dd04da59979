"""Compiled before any worker asks: each size is drawn once, to see how the denoiser is called, and what comes of it is kept."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

from hotshelf.pipelines import checks
from hotshelf.pipelines.compilation.workshop import State, workshop
from hotshelf.pipelines.loading import first_line
from hotshelf_shared.errors import HotshelfError, InvalidRequest
from hotshelf_shared.wire import nearest

_WHOLE = ("height", "width", "batch", "num_frames")
_FIELDS = (*_WHOLE, "guidance_scale")
#: Longer than any compiler takes; who does not want to wait ends the command.
_PATIENCE_S = 86_400.0


@dataclass(frozen=True, slots=True)
class Size:
    """What is drawn: pixels, images at once, and what a pipeline's call takes besides; without a word its own defaults."""

    given: tuple[tuple[str, Any], ...] = ()
    batch: int = 1

    @classmethod
    def parse(cls, value: object) -> Self:
        """Raises InvalidRequest."""
        if not isinstance(value, Mapping):
            raise InvalidRequest(f"a shape is {{height, width, batch}}, not {type(value).__name__}")
        for name, one in value.items():
            if name not in _FIELDS:
                raise InvalidRequest(f"a shape has an unknown field {str(name)[:80]!r}", hint=nearest(str(name), _FIELDS))
            kinds = (int,) if name in _WHOLE else (int, float)
            if isinstance(one, bool) or not isinstance(one, kinds) or one < (1 if name in _WHOLE else 0):
                raise InvalidRequest(f"a shape's {name} is {one!r}", hint="Write {height: 1024, width: 1024, batch: 1}.")
        rest = {name: one for name, one in value.items() if name != "batch"}
        return cls(tuple(sorted(rest.items())), value.get("batch", 1))

    def draw(self, pipe: Any) -> None:
        """One step, without decoding. Raises InvalidRequest."""
        parameters = inspect.signature(pipe.__call__).parameters
        if missing := [name for name in ("prompt", *dict(self.given)) if name not in parameters]:
            raise InvalidRequest(f"{type(pipe).__name__} takes no {missing[0]}", hint="Leave it out of `shapes`.")
        try:
            pipe([""] * self.batch, num_inference_steps=1, output_type="latent", **dict(self.given))
        except HotshelfError:
            raise
        except Exception as error:
            raise InvalidRequest(f"{dict(self.given)} cannot be drawn: {first_line(error)}") from error


@dataclass(frozen=True, slots=True)
class Plan:
    """A recipe's `compile`: a mode, and the sizes to compile for."""

    mode: str
    sizes: tuple[Size, ...]

    @classmethod
    def parse(cls, value: object) -> Self | None:
        """``aot``, or ``{mode: aot, shapes: [{height, width, batch}]}``. Raises InvalidRequest."""
        body = value if isinstance(value, Mapping) else {"mode": value}
        for name in body:
            if name not in ("mode", "shapes"):
                raise InvalidRequest(
                    f"compile has an unknown field {str(name)[:80]!r}", hint=nearest(str(name), ("mode", "shapes"))
                )
        if "shapes" in body and "mode" not in body:
            raise InvalidRequest("compile has shapes and no mode", hint="Write mode: aot beside them.")
        mode, shapes = checks.compile_mode(body.get("mode")), body.get("shapes", [{}])
        if not isinstance(shapes, Sequence) or isinstance(shapes, str) or not shapes:
            raise InvalidRequest("compile's shapes is a list", hint="Write shapes: [{height: 1024, width: 1024, batch: 1}].")
        return None if mode is None else cls(mode, tuple(Size.parse(one) for one in shapes))


def carry_out(plan: Plan, pipe: Any) -> dict[str, Any]:
    """What was compiled and kept, of a pipeline that was loaded with the plan's mode. Raises HotshelfError when nothing was."""
    from hotshelf.pipelines.compilation.applying import of

    found = of(pipe)
    if found is None:
        raise HotshelfError("nothing of it can be compiled this way", hint="explain(pipe)['compile'] says why.")
    keeps, found.keeps = found.keeps, found.keeps and plan.mode == "aot"
    pipe.set_progress_bar_config(disable=True)
    for size in plan.sizes:
        size.draw(pipe)
    workshop.finish(_PATIENCE_S)
    found.keeps = keeps
    for name in found.fresh:
        found.keep(name)
    report = found.report.to_json()
    broken = [item.why for item in found.report.items if item.state is not State.READY]
    if broken or report["kept"] == "failed":
        raise HotshelfError(f"it was not compiled for all shapes: {next(filter(None, broken), report['why'])}")
    return report
