"""Both life cycles of the shelf, each an Enum with one transition table.

Invariant: nothing else assigns a state; an event that the table does not allow raises and changes nothing.
"""

from __future__ import annotations

from enum import StrEnum


class IllegalTransition(Exception):
    """A defect of ours: code asked for a transition that the table does not know."""


class SnapshotState(StrEnum):
    #: Nothing of it is on the shelf.
    ABSENT = "absent"
    #: Its files are being fetched or laid out; a resolution is in this state before its revision is known.
    PREPARING = "preparing"
    #: Laid out, every byte verified: the only state a reader is ever given.
    READY = "ready"
    #: Preparing ended in an error that is remembered until the next attempt.
    FAILED = "failed"
    #: Was ready; one of its blobs has been lost or found wrong since.
    DAMAGED = "damaged"


class SnapshotEvent(StrEnum):
    PREPARE = "prepare"
    COMMIT = "commit"
    FAIL = "fail"
    DAMAGE = "damage"
    EVICT = "evict"


class IngestState(StrEnum):
    #: Room is promised. Also where an interrupted ingest waits to be resumed, and all of a small file's way to `committed`.
    RESERVED = "reserved"
    #: Segments are being fetched into the ingest's file.
    FETCHING = "fetching"
    #: Every byte is there; size, digest and content policy are being decided.
    VERIFYING = "verifying"
    #: Its bytes are a blob.
    COMMITTED = "committed"
    #: Its bytes were wrong or unwanted, and are gone.
    REJECTED = "rejected"


class IngestEvent(StrEnum):
    FETCH = "fetch"
    INTERRUPT = "interrupt"
    VERIFY = "verify"
    COMMIT = "commit"
    REJECT = "reject"


SNAPSHOT_TRANSITIONS: dict[tuple[SnapshotState, SnapshotEvent], SnapshotState] = {
    (SnapshotState.ABSENT, SnapshotEvent.PREPARE): SnapshotState.PREPARING,
    (SnapshotState.PREPARING, SnapshotEvent.COMMIT): SnapshotState.READY,
    (SnapshotState.PREPARING, SnapshotEvent.FAIL): SnapshotState.FAILED,
    (SnapshotState.FAILED, SnapshotEvent.PREPARE): SnapshotState.PREPARING,
    (SnapshotState.READY, SnapshotEvent.DAMAGE): SnapshotState.DAMAGED,
    (SnapshotState.DAMAGED, SnapshotEvent.PREPARE): SnapshotState.PREPARING,
    (SnapshotState.READY, SnapshotEvent.EVICT): SnapshotState.ABSENT,
    (SnapshotState.FAILED, SnapshotEvent.EVICT): SnapshotState.ABSENT,
}

INGEST_TRANSITIONS: dict[tuple[IngestState, IngestEvent], IngestState] = {
    (IngestState.RESERVED, IngestEvent.FETCH): IngestState.FETCHING,
    (IngestState.FETCHING, IngestEvent.VERIFY): IngestState.VERIFYING,
    (IngestState.FETCHING, IngestEvent.INTERRUPT): IngestState.RESERVED,
    (IngestState.VERIFYING, IngestEvent.INTERRUPT): IngestState.RESERVED,
    (IngestState.VERIFYING, IngestEvent.COMMIT): IngestState.COMMITTED,
    (IngestState.VERIFYING, IngestEvent.REJECT): IngestState.REJECTED,
}


def next_snapshot_state(state: SnapshotState, event: SnapshotEvent) -> SnapshotState:
    try:
        return SNAPSHOT_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"a snapshot that is {state.value} cannot {event.value}") from None


def next_ingest_state(state: IngestState, event: IngestEvent) -> IngestState:
    try:
        return INGEST_TRANSITIONS[state, event]
    except KeyError:
        raise IllegalTransition(f"an ingest that is {state.value} cannot {event.value}") from None
