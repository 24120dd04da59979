"""Whether what was built is kept for the next worker, and what became of that."""

from __future__ import annotations

import logging
import time
from typing import Any

from hotshelf.client import Client
from hotshelf.pipelines import recipes, saving
from hotshelf.pipelines.background import background
from hotshelf.pipelines.build import Built, Foundation
from hotshelf.pipelines.files import Files
from hotshelf.pipelines.order import PipelineOrder
from hotshelf_shared.errors import HotshelfError

log = logging.getLogger("hotshelf")


class Keeping:
    """`report` is what `explain` shows of it: its `state` is none, loaded, saving, saved or failed."""

    def __init__(self, client: Client, order: PipelineOrder, files: Files) -> None:
        self._client, self._order, self._files = client, order, files
        self.report: dict[str, Any] = {"state": "none"}
        if order.snapshot is True:
            saving.check_possible(files)

    @property
    def wanted(self) -> bool:
        """Always when asked for; else where building cost more than loading would, and the base is the shelf's."""
        order, files = self._order, self._files
        if order.snapshot is not None or files.snapshot is not None:
            return order.snapshot is True and files.snapshot is None
        at_home = any(lora.lease is None for lora in files.loras) if order.fuses else False
        on_shelf = files.base.lease is not None and all(one.lease is not None for one in files.components)
        return on_shelf and not at_home and recipes.is_worth_keeping(order, files)

    def keep(self, built: Built) -> None:
        """Now, when it was asked for (then it raises what goes wrong); else in the background, and says so in the log."""
        if built.served_from == "snapshot":
            self.report |= {"state": "loaded", "key": recipes.foundation(self._order, self._files).key}
        clean = built.clean
        if clean is None:
            if self.wanted and built.served_from == "built":
                self._give_up()
            return
        if self._order.snapshot is True:
            self._save(clean, built.phases)
            return
        self.report["state"] = "saving"
        background.submit(lambda: self._try_to_save(clean, dict(built.phases)))

    def _give_up(self) -> None:
        """Raises HotshelfError when it was asked for."""
        why = "its quantized weights cannot be copied, so nothing can be saved while it is used"
        if self._order.snapshot is True:
            raise HotshelfError(f"the pipeline cannot be saved: {why}", hint="Use snapshot=False with this quantization.")
        self.report |= {"state": "failed", "why": why}

    def _try_to_save(self, clean: Foundation, seconds: dict[str, float]) -> None:
        try:
            self._save(clean, seconds)
        except HotshelfError as error:
            self.report |= {"state": "failed", "why": error.message}
            log.warning("the pipeline was not saved: %s", error)
        except Exception as error:
            self.report |= {"state": "failed", "why": type(error).__name__}
            log.exception("the pipeline was not saved")

    def _save(self, clean: Foundation, seconds: dict[str, float]) -> None:
        began = time.monotonic()
        key = saving.save(self._client, self._order, self._files, clean, seconds)
        self.report |= {"state": "saved", "key": key, "seconds": round(time.monotonic() - began, 3)}
