"""One call of a denoiser as data: which tensors of which shapes and dtypes, and which plain words. What a package is made for.

Native code looks at no shape: it reads what it is given as what it was made for. So a call is described whole, or not at all.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

#: Nested tuples: ("tensor", dtype, shape, device), ("word", value), ("dict", ((name, …), …)), ("list" or "tuple", (…, …)).
Form = tuple[Any, ...]


class Unfit(Exception):
    """A call that no package is made for; its message says why."""


class Reader:
    """Describes the calls of one module."""

    def __init__(self, module: torch.nn.Module) -> None:
        import torch

        self._signature = inspect.signature(module.forward)
        self._plain = (torch.Tensor, torch.nn.Parameter)

    def read(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Form, list[torch.Tensor]]:
        """The form, and the tensors in its order. Raises Unfit."""
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise Unfit(str(error)) from error
        bound.apply_defaults()
        if bound.arguments.get("return_dict") is not False:
            raise Unfit("it is asked for more than a tuple (return_dict)")
        tensors: list[torch.Tensor] = []
        form = tuple((name, self._form(name, value, tensors)) for name, value in bound.arguments.items())
        return ("dict", form), tensors

    def _form(self, name: str, value: Any, tensors: list[torch.Tensor]) -> Form:
        kind = type(value)
        if kind in self._plain:
            tensors.append(value)
            return ("tensor", str(value.dtype).removeprefix("torch."), tuple(value.shape), str(value.device))
        if value is None or kind in (bool, int, str):
            return ("word", kind.__name__, value)
        if kind in (list, tuple):
            return (kind.__name__, tuple(self._form(name, one, tensors) for one in value))
        if kind is dict and all(type(key) is str for key in value):
            return ("dict", tuple((key, self._form(key, value[key], tensors)) for key in sorted(value)))
        raise Unfit(f"{name} is a {kind.__name__}")


def anywhere(form: Form) -> Form:
    """The form without the numbers of devices, which are this machine's: cuda:1 is cuda."""
    if form[0] == "tensor":
        return (*form[:3], form[3].partition(":")[0])
    if form[0] == "dict":
        return ("dict", tuple((name, anywhere(one)) for name, one in form[1]))
    return form if form[0] == "word" else (form[0], tuple(anywhere(one) for one in form[1]))


def value_of(form: Sequence[Any], make: Any) -> Any:
    """What a form (also one that came through JSON) describes, with `make(dtype, shape, device)` for each tensor."""
    if form[0] == "tensor":
        return make(form[1], tuple(form[2]), form[3])
    if form[0] == "word":
        return form[2]
    if form[0] == "dict":
        return {name: value_of(one, make) for name, one in form[1]}
    values = [value_of(one, make) for one in form[1]]
    return values if form[0] == "list" else tuple(values)


def shapes_of(form: Form) -> str:
    """For people: the shapes of the largest tensors."""
    found: list[tuple[int, ...]] = []
    value_of(form, lambda _, shape, __: found.append(shape))
    return ", ".join("x".join(map(str, shape)) for shape in found if len(shape) > 1)
