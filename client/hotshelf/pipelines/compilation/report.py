"""What `explain(pipe)["compile"]` says: what was asked for, what runs, what a cache saved, and why something else happened."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

from hotshelf.compiling import Reuse

if TYPE_CHECKING:
    from hotshelf.pipelines.compilation.workshop import Item

log = logging.getLogger("hotshelf")


class Report:
    """`to_json` is how things are at that moment.

    `served_from` is ``bundle``, ``local`` (compiled on this machine before) or ``none``; `hits` and `misses` count what was
    taken from there and what had to be compiled: graphs, or packages of ``aot``. `seconds` is what fetching, loading and
    first calls took, `calls` how many of the denoiser's calls ran compiled and how many did not. `kept`
    is none, saving, saved, known (another's was first) or failed.
    """

    def __init__(self, mode: str | None, runs: str, why: str | None = None) -> None:
        self.body: dict[str, Any] = {
            "mode": mode or False,
            "runs": runs,
            "served_from": "none",
            "hits": 0,
            "misses": 0,
            "seconds": 0.0,
            "why": None,
            "bundle": None,
            "kept": "none",
            "calls": {"compiled": 0, "eager": 0},
        }
        self.items: list[Item] = []
        self._said: set[str] = set()
        self._lock = threading.Lock()
        if why is not None:
            self.fell_back(why)

    def to_json(self) -> dict[str, Any]:
        kept = [self.body["kept"], *(item.kept for item in self.items)]
        worst = next(one for one in ("failed", "saving", "saved", "known", "none") if one in kept)
        return {**self.body, "calls": dict(self.body["calls"]), "kept": worst}

    def fell_back(self, why: str) -> None:
        """The last reason stands in the report, each is in the log once."""
        self.body["why"] = why
        with self._lock:
            is_new = why not in self._said
            self._said.add(why)
        if is_new:
            log.warning("compile=%r: %s", self.body["mode"], why)

    def took(self, seconds: float) -> None:
        self.body["seconds"] = round(self.body["seconds"] + seconds, 4)

    def called(self, *, compiled: bool) -> None:
        self.body["calls"]["compiled" if compiled else "eager"] += 1

    def served(self, source: str) -> None:
        """A bundle says more than what this machine had anyway."""
        if self.body["served_from"] != "bundle":
            self.body["served_from"] = source

    def looked(self, item: Item, *, is_hit: bool) -> None:
        self.items.append(item)
        self.body["hits" if is_hit else "misses"] += 1

    def compiled(self, reuse: Reuse, *, is_bundled: bool) -> None:
        """What torch's counters say of one call: of the whole process, since they tell no one's from another's."""
        self.body["hits"] += reuse.hits
        self.body["misses"] += reuse.misses
        if reuse.hits:
            self.served("bundle" if is_bundled else "local")
        elif is_bundled and reuse.misses:
            self.fell_back("the bundle has nothing of what was compiled")
        if reuse.bypasses:
            self.fell_back(f"{reuse.bypasses} graphs cannot be cached")
