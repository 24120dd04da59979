"""Both life cycles: what may follow what, and that nothing else does."""

from __future__ import annotations

import itertools

import pytest

from hotshelf_daemon.states import (
    INGEST_TRANSITIONS,
    SNAPSHOT_TRANSITIONS,
    IllegalTransition,
    IngestEvent,
    IngestState,
    SnapshotEvent,
    SnapshotState,
    next_ingest_state,
    next_snapshot_state,
)


def test_a_snapshot_goes_from_absent_to_ready_and_back() -> None:
    state = SnapshotState.ABSENT
    for event in (SnapshotEvent.PREPARE, SnapshotEvent.COMMIT, SnapshotEvent.EVICT):
        state = next_snapshot_state(state, event)
    assert state is SnapshotState.ABSENT


def test_a_damaged_snapshot_is_prepared_again() -> None:
    state = next_snapshot_state(SnapshotState.READY, SnapshotEvent.DAMAGE)
    assert next_snapshot_state(state, SnapshotEvent.PREPARE) is SnapshotState.PREPARING


def test_an_interrupted_ingest_waits_where_it_can_be_resumed() -> None:
    for state in (IngestState.FETCHING, IngestState.VERIFYING):
        assert next_ingest_state(state, IngestEvent.INTERRUPT) is IngestState.RESERVED


def test_bytes_are_verified_before_they_are_committed() -> None:
    assert next_ingest_state(IngestState.VERIFYING, IngestEvent.COMMIT) is IngestState.COMMITTED
    with pytest.raises(IllegalTransition):
        next_ingest_state(IngestState.FETCHING, IngestEvent.COMMIT)


def test_whatever_the_tables_do_not_allow_raises() -> None:
    for state, event in itertools.product(SnapshotState, SnapshotEvent):
        if (state, event) not in SNAPSHOT_TRANSITIONS:
            with pytest.raises(IllegalTransition, match=event.value):
                next_snapshot_state(state, event)
    for ingest, happens in itertools.product(IngestState, IngestEvent):
        if (ingest, happens) not in INGEST_TRANSITIONS:
            with pytest.raises(IllegalTransition, match=happens.value):
                next_ingest_state(ingest, happens)


def test_only_bytes_that_became_a_blob_or_were_rejected_are_at_an_end() -> None:
    ends = set(IngestState) - {state for state, _ in INGEST_TRANSITIONS}
    assert ends == {IngestState.COMMITTED, IngestState.REJECTED}
    assert {state for state, _ in SNAPSHOT_TRANSITIONS} == set(SnapshotState)
