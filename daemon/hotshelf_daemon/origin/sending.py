"""Files to a bucket: what is there already is not sent, what an earlier push began is gone on with, the rest in parallel parts.

One pool sends every byte, a part or a small file at a time; a second one, of the same size, sees a file each through its
requests. Each try at a file begins with a look: whatever was lost meanwhile, an answer, an upload, a race, shows there. An
upload is left for the next push when what failed may pass, and aborted when it will not.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from functools import partial
from typing import Any, Protocol, TypeVar

from hotshelf_daemon.origin.outgoing import Outgoing, OutgoingBody, Part, StoredPart, agrees, opened
from hotshelf_daemon.origin.retrying import delay_s
from hotshelf_daemon.origin.upload import Gone, Stored, Upload
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import HotshelfError, IntegrityError, OriginUnavailable

#: Files up to this are held in memory, so that not a byte of them goes out that is not what was hashed.
SMALL_BYTES = 8 << 20
ATTEMPTS = 5
T = TypeVar("T")


class Meter(Protocol):
    """Called from several threads at once."""

    def check(self) -> None:
        """Before each request and piece. Raises what is to end the push."""
        ...

    def sent(self, count: int) -> None:
        """Bytes that went out; fewer than none when they arrived nowhere."""
        ...

    def held(self, count: int) -> None:
        """Bytes that the origin had; fewer than none when it has lost them."""
        ...

    def done(self) -> None:
        """One file more is there."""
        ...


class _Over(Exception):
    """Something else has ended the push."""


class _Course:
    """How one file fares. `etags` are the parts that its upload holds, as far as this push knows."""

    def __init__(self) -> None:
        self.upload: str | None = None
        self.etags: dict[int, str] = {}
        self.counted = 0  # by the meter, as sent or as held
        self.sent = 0
        self.began = self.resumed = self.anew = False
        self.attempts = self.best = 0

    def took(self, part: Part, etag: str, *, sent: bool) -> None:
        self.etags[part.number] = etag
        self.counted += part.size
        self.sent += part.size if sent else 0

    def failed(self) -> int:
        """How many times in a row this was, without a part more than there ever were."""
        self.attempts = 1 if len(self.etags) > self.best else self.attempts + 1
        self.best = max(self.best, len(self.etags))
        return self.attempts


class Sender:
    """For one push. `published` are the digests that the manifest in force names: their blobs need no metadata."""

    def __init__(self, target: Upload, meter: Meter, published: Callable[[], frozenset[Digest]] = frozenset) -> None:
        self._target, self._meter, self._published = target, meter, published
        self._over = threading.Event()

    def send(self, files: Sequence[Outgoing]) -> list[int | None]:
        """Bytes sent for each file, None for what was there.

        Raises InvalidRequest (a file changed), FileNotFoundError (one went away), AccessDenied, NotFound (no bucket),
        IntegrityError (the origin keeps other bytes), OriginUnavailable, or what the meter raises.
        """
        count = self._target.at_once
        with ThreadPoolExecutor(count) as self._parts, ThreadPoolExecutor(count) as whole:
            futures = [whole.submit(self._send, file) for file in files]
            try:
                wait(futures, return_when=FIRST_EXCEPTION)
            finally:  # one has failed, or the caller was interrupted: the others stop at their next piece
                self._over.set()
                for future in futures:
                    future.cancel()
        _raise_first(futures)
        return [future.result() for future in futures]

    def _check(self) -> None:
        if self._over.is_set():
            raise _Over
        self._meter.check()

    def _send(self, file: Outgoing) -> int | None:
        course = _Course()
        try:
            self._see_through(file, course)
        except (HotshelfError, OSError) as error:
            if not getattr(error, "retryable", False):
                self._abort(file, [course.upload] if course.upload else [])
            raise
        self._meter.held(file.size - course.counted)
        self._meter.done()
        return course.sent if course.began else None

    def _see_through(self, file: Outgoing, course: _Course) -> None:
        while True:
            self._check()
            try:
                if self._is_there(file):
                    break
                course.began = True
                if file.size <= SMALL_BYTES:
                    return self._put_whole(file, course)
                self._put_parts(file, course)
                if self._arrived(file, course):
                    break
            except OriginUnavailable as error:
                if isinstance(error, Gone):
                    self._forget(course)
                if not error.retryable or (failures := course.failed()) == ATTEMPTS:
                    raise
                self._over.wait(delay_s(failures - 1, asked=error.retry_after_s))
        if course.began and file.size > SMALL_BYTES:
            # With the object there no upload of it is of use: not ours, if another was faster, nor one that was killed.
            with suppress(HotshelfError):
                self._abort(file, self._target.unfinished(file.key))
        return None

    def _is_there(self, file: Outgoing) -> bool:
        """Whether the file is under its key, by all that the origin says. Without a digest, what was published before is."""
        stored = self._target.stored(file.key)
        if stored is None or not _same_bytes(stored, file):
            return False
        return stored.digest == file.digest or (stored.digest is None and file.named and file.digest in self._published())

    def _arrived(self, file: Outgoing, course: _Course) -> bool:
        """Whether what was completed is the file: an upload that was gone on with may have begun as something else."""
        if not file.named:
            return True  # whoever wrote a plain name last has it
        stored = self._target.stored(file.key)
        # What this push began itself lacks a digest only where the service keeps none.
        labels = (file.digest,) if course.resumed else (file.digest, None)
        if stored is not None and stored.digest in labels and _same_bytes(stored, file):
            return True
        if course.anew:
            raise IntegrityError(
                f"{file.key} is not what was sent, twice", hint="The service alters or mixes up what it stores."
            )
        self._forget(course)
        course.anew = True
        return False

    # ---- bytes

    def _put_whole(self, file: Outgoing, course: _Course) -> None:
        with open(file.real, "rb") as stream:
            data = stream.read(file.size + 1)
        if Digest.of(data) != file.digest:
            raise file.changed()
        body = OutgoingBody(lambda at, count: data[at : at + count], len(data), self._goes)
        put = partial(self._target.put_whole, file.key, body, file.digest, cache_control=file.cache_control)
        self._parts.submit(self._out, body, put).result()
        course.counted = course.sent = len(data)

    def _put_parts(self, file: Outgoing, course: _Course) -> None:
        """Completes the upload: the one there is, one to go on with, or a new one. After a failure no further part is begun."""
        file.refuse_changed()
        with opened(file.real) as fd:
            upload = course.upload = course.upload or self._resumed(fd, file, course) or self._begin(file)
            halt = threading.Event()

            def put(part: Part) -> str | None:
                if halt.is_set():
                    return None
                body = OutgoingBody.of_part(fd, file, part, self._goes)
                try:
                    return self._out(body, partial(self._target.put_part, file.key, upload, part.number, body))
                except BaseException:
                    halt.set()
                    raise

            parts = [part for part in file.parts() if part.number not in course.etags]
            futures = [self._parts.submit(put, part) for part in parts]
            wait(futures)
        for part, future in zip(parts, futures, strict=True):
            if future.exception() is None and (etag := future.result()) is not None:
                course.took(part, etag, sent=True)
        _raise_first(futures)
        file.refuse_changed()
        self._check()
        self._target.complete(file.key, upload, course.etags)

    def _begin(self, file: Outgoing) -> str:
        return self._target.begin(file.key, file.digest, cache_control=file.cache_control)

    def _resumed(self, fd: int, file: Outgoing, course: _Course) -> str | None:
        """An unfinished upload with parts that are ours. Not of a plain name, where it may be meant for other bytes."""
        if not file.named or course.anew:
            return None
        try:
            for upload in self._target.unfinished(file.key):
                self._believe(fd, file, upload, course)
                if course.etags:
                    course.resumed = True
                    self._meter.held(course.counted)
                    return upload
        except HotshelfError as error:
            if error.retryable:
                raise
            # It does not list uploads, or not to this key: that costs a resume, and must not cost the push.
        return None

    def _believe(self, fd: int, file: Outgoing, upload: str, course: _Course) -> None:
        ours = {part.number: part for part in file.parts()}
        try:
            theirs = [one for one in self._target.parts(file.key, upload) if one.number in ours]
        except Gone:
            return
        verdicts = [self._parts.submit(self._agrees, fd, ours[one.number], one) for one in theirs]
        wait(verdicts)
        for one, verdict in zip(theirs, verdicts, strict=True):
            if verdict.result():
                course.took(ours[one.number], one.etag, sent=False)

    def _agrees(self, fd: int, part: Part, theirs: StoredPart) -> bool:
        self._check()
        return agrees(fd, part, theirs)

    def _out(self, body: OutgoingBody, ask: Callable[[], T]) -> T:
        self._check()
        try:
            return ask()
        except BaseException:
            self._meter.sent(-body.counted)
            raise

    def _goes(self, count: int) -> None:
        self._check()
        self._meter.sent(count)

    def _forget(self, course: _Course) -> None:
        self._meter.held(-course.counted)
        course.upload, course.etags, course.counted, course.resumed = None, {}, 0, False

    def _abort(self, file: Outgoing, uploads: Sequence[str]) -> None:
        for upload in uploads:
            with suppress(HotshelfError):  # what stays is found by the next push, or by the bucket's own rule
                self._target.abort(file.key, upload)


def _same_bytes(stored: Stored, file: Outgoing) -> bool:
    if stored.size != file.size:
        return False
    return stored.crc64nvme is None or file.has_crc64nvme(stored.crc64nvme)


def _raise_first(futures: Sequence[Future[Any]]) -> None:
    """What went wrong, rather than what stopped because of it."""
    errors = [error for future in futures if not future.cancelled() and (error := future.exception()) is not None]
    for error in sorted(errors, key=lambda error: isinstance(error, _Over)):
        raise error
