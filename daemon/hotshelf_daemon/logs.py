"""Structured logs on stderr, one JSON object a line, with every secret taken out before it is written."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from collections.abc import Iterable
from typing import Any

LOGGER = "hotshelf_daemon"
_PATTERNS = (
    (re.compile(r"(?i)\b(X-Amz-(?:Signature|Credential|Security-Token)|Signature|AWSAccessKeyId|token)=[^&\s\"']+"), r"\1=***"),
    (re.compile(r"(?i)\b(https?://)[^/\s:@]+:[^/\s@]+@"), r"\1***@"),
    (re.compile(r"(?i)\b(authorization['\"]?\s*[:=]\s*['\"]?)[^'\"\n]+"), r"\1***"),
)
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName"}


class Redactor:
    """Takes known secret values, presigned queries, user info and authorization headers out of text."""

    def __init__(self, secrets: Iterable[str] = ()) -> None:
        # The longest first, so that a secret which contains another leaves no rest.
        self._secrets: list[str] = []
        self.keep_out(secrets)

    def keep_out(self, secrets: Iterable[str]) -> None:
        self._secrets = sorted({*self._secrets, *(s for s in secrets if len(s) >= 4)}, key=len, reverse=True)

    def __call__(self, text: str) -> str:
        for secret in self._secrets:
            text = text.replace(secret, "***")
        for pattern, replacement in _PATTERNS:
            text = pattern.sub(replacement, text)
        return text


class JsonLines(logging.Formatter):
    """`logger.info("ready", extra={"revision": …})` → one line with time, level, event and the extras."""

    def __init__(self, redact: Redactor) -> None:
        super().__init__()
        self._redact = redact

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{stamp}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        line.update((key, value) for key, value in vars(record).items() if key not in _STANDARD)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return self._redact(json.dumps(line, default=str, ensure_ascii=False))


_redact = Redactor()


def keep_out(secrets: Iterable[str]) -> None:
    """Secrets that came after the start: no log line will show these either."""
    _redact.keep_out(secrets)


def configure(level: str, secrets: Iterable[str]) -> None:
    """Sends everything to stderr as JSON lines; third-party libraries speak only from warning up."""
    handler = logging.StreamHandler(sys.stderr)
    keep_out(secrets)
    handler.setFormatter(JsonLines(_redact))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(LOGGER).setLevel(level.upper())
