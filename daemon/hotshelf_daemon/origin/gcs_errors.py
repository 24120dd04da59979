"""What Google Cloud Storage says instead of an answer, as ours: by what an operator has to do about each. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from hotshelf_daemon.origin.port import Busy, Changed
from hotshelf_daemon.origin.s3_errors import hopeless, retry_after
from hotshelf_shared.errors import AccessDenied, HotshelfError, IntegrityError, NotFound, OriginUnavailable

#: 403 with these says "not now".
_TOO_MUCH = {"rateLimitExceeded", "userRateLimitExceeded"}
NOBODY = "nobody (unsigned)"
_SIGN = "Name an account's key in gcs.service_account_file, and give it the role Storage Object Viewer on the bucket."
_GRANT = "Give that account the role Storage Object Viewer on the bucket, or configure another one (`gcs`)."
_PAYS = "The bucket's owner lets whoever asks pay: set gcs.project to the project that does."


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of an error status. `headers` by names in lower case; `reason` is Google's own short word, if any."""

    status: int
    reason: str
    message: str
    headers: Mapping[str, str]


def as_ours(refusal: Refusal, label: str, principal: str, where: str) -> HotshelfError:
    """`principal` is the account's name: it is told, its key never."""
    status, after = refusal.status, retry_after(refusal.headers)
    said = f"{label} says {status} {refusal.reason}".rstrip()
    if status in (429, 503) or refusal.reason in _TOO_MUCH:
        return Busy(f"{said} for {where}", retry_after_s=after)
    if status == 400 and "user project" in refusal.message.lower():
        return AccessDenied(f"{said}: {principal} may not read {where} at the expense of its owner", hint=_PAYS)
    if status in (401, 403):
        return AccessDenied(f"{said}: {principal} may not read {where}", hint=_SIGN if principal == NOBODY else _GRANT)
    if status == 404:
        return NotFound(f"{where} is not there ({said})", hint="Check the bucket's name; names are exact.")
    if status in (412, 416):
        return Changed(f"{where} changed at the origin")
    if status in (408, 425) or (status >= 500 and status != 501):
        return OriginUnavailable(f"{said} for {where}", retry_after_s=after)
    if status in (301, 302, 303, 307, 308):
        return AccessDenied(f"{said}: it redirects {where} elsewhere", hint="Set gcs.endpoint_url right.")
    if status == 407:
        return hopeless(f"{said}: a proxy stands before {where}", "Set NO_PROXY for the endpoint, or mend the proxy.")
    return IntegrityError(f"{said} for {where}", hint="See what Google says about that status, and check gcs.endpoint_url.")
