"""Every failure that hotshelf raises. They are drawn, and documented, in `hotshelf_shared.errors`."""

from hotshelf_shared.errors import (
    AccessDenied,
    BadConfiguration,
    DaemonUnavailable,
    HotshelfError,
    InsufficientSpace,
    IntegrityError,
    InUse,
    InvalidRequest,
    NotFound,
    OriginUnavailable,
    Timeout,
    TooLarge,
    UnsafeContent,
)

__all__ = [
    "AccessDenied",
    "BadConfiguration",
    "DaemonUnavailable",
    "HotshelfError",
    "InUse",
    "InsufficientSpace",
    "IntegrityError",
    "InvalidRequest",
    "NotFound",
    "OriginUnavailable",
    "Timeout",
    "TooLarge",
    "UnsafeContent",
]
