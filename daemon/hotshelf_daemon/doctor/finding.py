"""What a check found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong: an ``error`` keeps hotshelf from working, a ``warning`` will one day."""

    level: Literal["error", "warning"]
    check: str
    message: str
    fix: str


#: What the daemon says of itself; None where none answers.
Status = dict[str, Any] | None
