"""Silence while a pipeline is built: a worker's stderr is for the worker, not for progress bars and general advice.

The garbage collector is silent too. What matters of that advice is checked by us and is an error. The settings are the
process's, so they are changed only while the caller holds the lock under which everything is built, and put back.
"""

from __future__ import annotations

import gc
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

_LIBRARIES = ("diffusers", "transformers", "peft")


@contextmanager
def quietly() -> Iterator[None]:
    """No bars, no warnings, no log lines below ERROR from the libraries that build."""
    bars = [module for module in map(_logging_of, _LIBRARIES) if module is not None and module.is_progress_bar_enabled()]
    loggers = [logging.getLogger(name) for name in _LIBRARIES]
    levels = [logger.level for logger in loggers]
    for module in bars:
        module.disable_progress_bar()
    for logger in loggers:
        logger.setLevel(max(logging.ERROR, logger.level))
    try:
        with warnings.catch_warnings(), _uncollected():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for module in bars:
            module.enable_progress_bar()


@contextmanager
def _uncollected() -> Iterator[None]:
    """No garbage collection amid the hundred thousand objects of a model, none of which is garbage."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def importing_quietly() -> Iterator[None]:
    """As `quietly`, for libraries that set up their own logging when they are imported, as the environment says."""
    before = {name: os.environ.get(name) for name in ("DIFFUSERS_VERBOSITY", "TRANSFORMERS_VERBOSITY")}
    fresh = [name for name in before if name.partition("_")[0].lower() not in sys.modules and before[name] is None]
    os.environ.update(dict.fromkeys(fresh, "error"))
    try:
        with quietly():
            yield
    finally:
        for name in fresh:
            del os.environ[name]
            module = _logging_of(name.partition("_")[0].lower())
            if module is not None:
                module.set_verbosity_warning()


def _logging_of(library: str) -> ModuleType | None:
    return sys.modules.get(f"{library}.utils.logging")
