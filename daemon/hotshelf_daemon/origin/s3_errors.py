"""botocore's errors as ours, by what an operator has to do about each."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import parsedate_to_datetime
from typing import Any

import urllib3.exceptions
from botocore import exceptions as boto
from botocore.parsers import ResponseParserError

from hotshelf_daemon.origin.guard import LinkLocal
from hotshelf_daemon.origin.port import Busy, Changed
from hotshelf_shared.errors import AccessDenied, HotshelfError, IntegrityError, NotFound, OriginUnavailable

_DENIED_HINTS = {
    "InvalidAccessKeyId": "The access key id is unknown there: check access_key_id (B2_KEY_ID) and endpoint_url.",
    "SignatureDoesNotMatch": "The secret is wrong for that key id: check secret_access_key (B2_SECRET_KEY) and region.",
    "ExpiredToken": "The session token has expired: supply a fresh one.",
    "ExpiredTokenException": "The session token has expired: supply a fresh one.",
    "TokenRefreshRequired": "The session token has expired: supply a fresh one.",
}
_NO_S3 = "Check endpoint_url: something else may answer there, or stand in front of it."
_WHEN_REQUIRED = "Set AWS_REQUEST_CHECKSUM_CALCULATION and AWS_RESPONSE_CHECKSUM_VALIDATION to when_required for your tools."
LONGEST_ASKED_S = 60.0
_USED_UP = re.compile(r";\s*r=0\s*;\s*t=(\d{1,9})")
_QUERY = re.compile(r"\?[^\s\"']+")
EXPIRED = frozenset(code for code in _DENIED_HINTS if "Token" in code)


@contextmanager
def translated(label: str, principal: str, where: str, *, doing: str = "read") -> Iterator[None]:
    """Around every call into boto3. `principal` is the access key id: it is named, the secret never."""
    try:
        yield
    except Exception as error:
        if (ours := as_ours(error, label, principal, where, doing=doing)) is None:
            raise
        raise ours from error


def as_ours(error: Exception, label: str, principal: str, where: str, *, doing: str = "read") -> HotshelfError | None:
    """What boto3 or the connection raised, as ours; None when it is not theirs."""
    match error:
        case boto.ClientError():
            return _of_answer(error, label, f"{principal} may not {doing} {where}", where)
        case boto.NoCredentialsError() | boto.PartialCredentialsError() | boto.TokenRetrievalError():
            hint = "Set the origin's access_key_id and secret_access_key, or `unsigned: true` for a public bucket."
            return AccessDenied(f"there are no credentials for {where}", hint=hint)
        case boto.SSLError():
            reason = f"the certificate of {label} is not accepted ({first_line(error)})"
            return hopeless(reason, "Set the origin's ca_bundle.")
        case boto.ParamValidationError() | boto.InvalidRegionError() | boto.UnknownServiceError():
            return NotFound(f"{where} cannot be asked for: {first_line(error)}")
        case boto.PaginationError():
            return IntegrityError(f"{label} lists {where} in circles", hint="The service's listing is broken.")
        case ResponseParserError() | ValueError() | TypeError() | KeyError():
            # botocore lets some of what it stumbles over in an answer through as it is.
            return IntegrityError(f"{label} answers for {where} what is no S3 answer", hint=_NO_S3)
        case boto.BotoCoreError() | urllib3.exceptions.HTTPError() | OSError():
            if isinstance(refusal := getattr(error, "kwargs", {}).get("error"), LinkLocal):
                hint = "Point the origin's endpoint_url at a service that is not link-local."
                return AccessDenied(f"{label} is not asked for {where}: {refusal}", hint=hint)
            # Endpoint, connection, proxy, time-out and broken-stream errors: all of them may pass.
            return OriginUnavailable(f"{label} cannot be reached for {where}: {first_line(error)}")
    return None


def _of_answer(error: boto.ClientError, label: str, denied: str, where: str) -> HotshelfError:
    answer: Any = error.response
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    headers = answer.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    code = str(answer.get("Error", {}).get("Code", ""))
    said = f"{label} says {status} {code}".rstrip()
    if code == "NoSuchBucket":
        return NotFound(f"there is no bucket for {where} at {label}", hint="Check the bucket's name and the endpoint.")
    if code == "RequestTimeTooSkewed":
        theirs = _server_time(headers)
        ours = time.strftime("%H:%M:%S", time.gmtime())
        return OriginUnavailable(f"the clocks differ: here {ours}, at {label} {theirs} (UTC)", hint="Set this clock right.")
    if status in (401, 403) or code in EXPIRED:
        hint = _DENIED_HINTS.get(code, "Give that key the right to it, or configure another key.")
        return AccessDenied(f"{said}: {denied}", hint=hint)
    if status == 404:
        return NotFound(f"{where} is not there ({said})")
    if status in (412, 416):
        return Changed(f"{where} changed at the origin")
    if status in (429, 503) or code in ("SlowDown", "RequestLimitExceeded"):
        return Busy(f"{said} for {where}", retry_after_s=retry_after(headers))
    if status in (408, 425) or (status >= 500 and status != 501):
        return OriginUnavailable(f"{said} for {where}", retry_after_s=retry_after(headers))
    if status in (301, 302, 307, 308):
        return AccessDenied(f"{said}: it redirects {where} elsewhere", hint="Set the origin's region and endpoint_url right.")
    return _of_odd_answer(status, str(answer.get("Error", {}).get("Message", "")), said, where)


def _of_odd_answer(status: int, message: str, said: str, where: str) -> HotshelfError:
    if status == 407:
        return hopeless(f"{said}: a proxy stands before {where}", "Set NO_PROXY for the endpoint, or mend the proxy.")
    if "checksum" in message.lower():
        return IntegrityError(f"{said} for {where}: it does not know the checksums it was sent", hint=_WHEN_REQUIRED)
    return IntegrityError(f"{said} for {where}", hint="See what the service says about that status.")


def retry_after(headers: Any) -> float | None:
    """Seconds, or a date; a minute at the most. Some only say when their limit begins anew (RateLimit, an IETF draft)."""
    asked = headers.get("retry-after", "")
    if not asked and (found := _USED_UP.search(headers.get("ratelimit", ""))):
        asked = found[1]
    try:
        return min(max(float(asked), 0.0), LONGEST_ASKED_S)
    except ValueError:
        pass
    try:
        return min(max(parsedate_to_datetime(asked).timestamp() - time.time(), 0.0), LONGEST_ASKED_S)
    except (TypeError, ValueError):
        return None


def hopeless(message: str, hint: str) -> OriginUnavailable:
    """Unavailable, and no retry will help."""
    error = OriginUnavailable(message, hint=hint)
    error.retryable = False
    return error


def _server_time(headers: Any) -> str:
    try:
        return parsedate_to_datetime(headers.get("date", "")).strftime("%H:%M:%S")
    except (TypeError, ValueError):
        return "unknown"


def first_line(error: object) -> str:
    """Without what stands behind the ? of an address: a redirect may have put a signature there."""
    return _QUERY.sub("?…", (str(error).splitlines() or [type(error).__name__])[0])[:300]
