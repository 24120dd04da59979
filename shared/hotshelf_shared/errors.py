"""Every failure a caller can see, named by whose fault it is.

A class says the stable facts (``code``, HTTP ``status``, ``exit_code``, whether a retry can help); an instance says what
happened (``message``) and what to do about it (``hint``). The docstring of a class is its default message. Over the wire
an error is an RFC 9457 problem, and ``from_problem(e.to_problem())`` raises the same class at the other end.
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

Problem = dict[str, Any]
_LONGEST_S = 7 * 86_400


class HotshelfError(Exception):
    """Something went wrong inside hotshelf."""

    code: ClassVar[str] = "internal_error"
    status: ClassVar[int] = 500
    exit_code: ClassVar[int] = 1
    default_hint: ClassVar[str] = "This is a defect: report it with the daemon's log around this moment."
    retryable: bool = False

    def __init__(
        self, message: str | None = None, *, hint: str | None = None, retry_after_s: float | None = None, **details: Any
    ) -> None:
        self.message = message or (type(self).__doc__ or "").splitlines()[0]
        self.hint = hint or self.default_hint
        self.retry_after_s = retry_after_s
        self.details = details
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message

    def to_problem(self) -> Problem:
        """The ``application/problem+json`` body of RFC 9457, with our ``code``, ``hint`` and ``retryable``."""
        problem: Problem = {
            "type": f"urn:hotshelf:error:{self.code}",
            "title": (type(self).__doc__ or "").splitlines()[0],
            "status": self.status,
            "detail": self.message,
            "code": self.code,
            "hint": self.hint,
            "retryable": self.retryable,
        }
        if self.retry_after_s is not None:
            problem["retry_after_s"] = self.retry_after_s
        if self.details:
            problem["details"] = self.details
        return problem

    @classmethod
    def _revive(cls, problem: Problem) -> Self:
        after, details = problem.get("retry_after_s"), problem.get("details")
        error = cls(
            str(problem.get("detail") or ""),
            hint=str(problem.get("hint") or ""),
            retry_after_s=float(after) if isinstance(after, int | float) and 0 <= after <= _LONGEST_S else None,
        )
        error.details = details if isinstance(details, dict) else {}  # not as arguments: the other end chose the names
        error.retryable = bool(problem.get("retryable", cls.retryable))
        return error


# ---- the request's fault


class InvalidRequest(HotshelfError):
    """The request is malformed."""

    code, status, exit_code = "invalid_request", 400, 2
    default_hint = "Correct the request; `hotshelf VERB --help` shows an example."


class NotFound(HotshelfError):
    """There is nothing of that name."""

    code, status, exit_code = "not_found", 404, 3
    default_hint = "Check the spelling; `hotshelf ls` shows what is held."


class AccessDenied(HotshelfError):
    """The caller may not do this."""

    code, status, exit_code = "access_denied", 403, 6
    default_hint = "Ask the operator for access."


class InUse(HotshelfError):
    """It is held by a lease or a pin."""

    code, status, exit_code, retryable = "in_use", 409, 1, True
    default_hint = "Wait for the holders to let go, or unpin it first."


class Conflict(HotshelfError):
    """Something else already has that name."""

    code, status, exit_code = "conflict", 409, 1
    default_hint = "The first one stays until it is evicted; use it, or evict it first."


class MissingBlobs(HotshelfError):
    """Not every blob that it names is held."""

    code, status, exit_code = "missing_blobs", 409, 1
    default_hint = "Hand the listed blobs in with PUT /v1/blobs/{digest}, then send this again."


class Busy(HotshelfError):
    """Too much of this is under way at once."""

    code, status, exit_code, retryable = "busy", 429, 75, True
    default_hint = "Send it again in a moment."


class BadConfiguration(HotshelfError):
    """The configuration cannot be used."""

    code, status, exit_code = "bad_configuration", 500, 78
    default_hint = "Correct the setting named; `hotshelf config show` prints each value and where it came from."


# ---- the origin's fault


class OriginUnavailable(HotshelfError):
    """The origin cannot be reached."""

    code, status, exit_code, retryable = "origin_unavailable", 503, 75, True
    default_hint = "Check the origin's endpoint and network; what is already on the shelf is still served."


# ---- the content's fault


class IntegrityError(HotshelfError):
    """The bytes are not what they claim to be."""

    code, status, exit_code = "integrity_error", 502, 4
    default_hint = "Publish the files again with `hotshelf push`; nothing wrong was made visible."


class UnsafeContent(HotshelfError):
    """The content could execute code."""

    code, status, exit_code = "unsafe_content", 422, 7
    default_hint = "Convert the weights to safetensors and publish those."


# ---- room


class InsufficientSpace(HotshelfError):
    """There is no room on the shelf now."""

    code, status, exit_code, retryable = "insufficient_space", 507, 5, True
    default_hint = "Release leases or unpin snapshots, or raise `budget`."


class TooLarge(HotshelfError):
    """It would never fit."""

    code, status, exit_code = "too_large", 413, 5
    default_hint = "Raise `budget`, or narrow it with allow_patterns."


# ---- ours


class DaemonUnavailable(HotshelfError):
    """hotshelfd does not answer on its socket."""

    code, status, exit_code, retryable = "daemon_unavailable", 503, 69, True
    default_hint = "Start hotshelfd, or set HOTSHELF_SOCKET to the socket it listens on."


class Timeout(HotshelfError):
    """The deadline passed."""

    code, status, exit_code, retryable = "timeout", 504, 75, True
    default_hint = "Ask again with a longer timeout; what was fetched so far is kept and resumed."


BY_CODE: dict[str, type[HotshelfError]] = {
    cls.code: cls
    for cls in (
        HotshelfError,
        InvalidRequest,
        NotFound,
        AccessDenied,
        InUse,
        Conflict,
        MissingBlobs,
        Busy,
        BadConfiguration,
        OriginUnavailable,
        IntegrityError,
        UnsafeContent,
        InsufficientSpace,
        TooLarge,
        DaemonUnavailable,
        Timeout,
    )
}


def from_problem(problem: Problem) -> HotshelfError:
    """The error a problem body stands for; an unknown code (a newer daemon's) becomes a plain HotshelfError."""
    return BY_CODE.get(str(problem.get("code")), HotshelfError)._revive(problem)
