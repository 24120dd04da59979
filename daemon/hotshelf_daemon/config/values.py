"""What values of settings are: sizes, shares and times as people write them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field

_SIZE = re.compile(r"\s*(\d{1,19}(?:\.\d{1,19})?)\s*([kKMGTP]?)(i?)[bB]?(?:/s)?\s*\Z")
_SCALE = {"": 0, "k": 1, "K": 1, "M": 2, "G": 3, "T": 4, "P": 5}


def parse_bytes(value: object) -> object:
    """``180GiB``, ``200MB/s`` or a number, as whole bytes; anything else is left for pydantic to refuse."""
    if isinstance(value, str) and (found := _SIZE.match(value)):
        return int(float(found[1]) * (1024 if found[3] else 1000) ** _SCALE[found[2]])
    return value


Bytes = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0, le=1 << 60)]
Percent = Annotated[str, Field(pattern=r"^(100|[1-9]?\d)(\.\d+)?%$")]
Seconds = Annotated[float, Field(gt=0, le=7 * 86_400)]
Globs = list[str] | str | None
#: YAML reads an unquoted `off` as false.
Verify = Annotated[Literal["off", "required"], BeforeValidator(lambda value: "off" if value is False else value)]


def share_of(value: int | str, whole: int) -> int:
    """Bytes, where `value` is bytes or a percentage of `whole`."""
    return int(float(value[:-1]) / 100 * whole) if isinstance(value, str) else value
