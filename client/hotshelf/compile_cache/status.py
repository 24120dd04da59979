"""What becomes of an operation, and the exceptions, by b10-transfer's names."""

from __future__ import annotations

import enum


class OperationStatus(enum.Enum):
    """What load and save answer."""

    #: Loaded, or saved.
    SUCCESS = "success"
    #: It failed; the log says why. Compile as if there were no cache.
    ERROR = "error"
    #: Of load: nobody has saved one for this environment.
    DOES_NOT_EXIST = "does_not_exist"
    #: Of load: there is a local cache already. Of save: the shelf has one already.
    SKIPPED = "skipped"


class CacheError(Exception):
    """A cache operation failed."""


class CacheValidationError(CacheError):
    """A path or a setting is not what it has to be."""


class CacheOperationInterrupted(CacheError):
    """A disk has not enough room."""
