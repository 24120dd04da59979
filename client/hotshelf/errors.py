"""Every failure that hotshelf raises. They are drawn, and documented, in `hotshelf_shared.errors`."""

from hotshelf_shared.errors import (
    AccessDenied,
    BadConfiguration,
    Busy,
    Conflict,
    DaemonUnavailable,
    HotshelfError,
    InsufficientSpace,
    IntegrityError,
    InUse,
    InvalidRequest,
    MissingBlobs,
    NotFound,
    OriginUnavailable,
    Timeout,
    TooLarge,
    UnsafeContent,
)

__all__ = [
    "AccessDenied",
    "BadConfiguration",
    "Busy",
    "Conflict",
    "DaemonUnavailable",
    "HotshelfError",
    "InUse",
    "InsufficientSpace",
    "IntegrityError",
    "InvalidRequest",
    "MissingBlobs",
    "NotFound",
    "OriginUnavailable",
    "Timeout",
    "TooLarge",
    "UnsafeContent",
]
