"""Errors: the same class, words and advice at both ends of the wire."""

from __future__ import annotations

import inspect
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_shared import errors
from hotshelf_shared.errors import BY_CODE, HotshelfError, from_problem

CLASSES = [cls for _, cls in inspect.getmembers(errors, inspect.isclass) if issubclass(cls, HotshelfError)]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


@every_class
def test_every_error_travels_as_a_problem_and_arrives_as_itself(cls: type[HotshelfError]) -> None:
    sent = cls("it broke", hint="mend it", retry_after_s=1.5, needed_bytes=7, holders=["a"])
    problem = json.loads(json.dumps(sent.to_problem()))
    got = from_problem(problem)
    assert type(got) is cls
    assert (got.message, got.hint, got.retry_after_s) == ("it broke", "mend it", 1.5)
    assert got.details == {"needed_bytes": 7, "holders": ["a"]}
    assert (got.retryable, got.code, got.status, got.exit_code) == (cls.retryable, cls.code, cls.status, cls.exit_code)
    assert got.to_problem() == problem


@every_class
def test_an_error_without_words_says_its_docstring_and_what_to_do(cls: type[HotshelfError]) -> None:
    error = cls()
    assert error.message == (cls.__doc__ or "").splitlines()[0]
    assert error.hint
    assert str(error) == f"{error.message} ({error.hint})"


@every_class
def test_a_problem_has_the_members_of_rfc_9457_and_ours(cls: type[HotshelfError]) -> None:
    problem = cls("x").to_problem()
    assert {"type", "title", "status", "detail", "code", "hint", "retryable"} == set(problem)
    assert problem["type"] == f"urn:hotshelf:error:{cls.code}"
    assert 400 <= problem["status"] < 600


def test_codes_are_unique_and_every_class_can_be_revived() -> None:
    assert {cls.code for cls in CLASSES} == set(BY_CODE)
    assert len(BY_CODE) == len(CLASSES)
    assert set(BY_CODE.values()) == set(CLASSES)


def test_the_contracts_errors_and_exit_codes_are_there() -> None:
    assert {name: getattr(errors, name).exit_code for name in CONTRACT} == CONTRACT


CONTRACT = {
    "HotshelfError": 1,
    "InvalidRequest": 2,
    "NotFound": 3,
    "IntegrityError": 4,
    "InsufficientSpace": 5,
    "TooLarge": 5,
    "AccessDenied": 6,
    "UnsafeContent": 7,
    "DaemonUnavailable": 69,
    "OriginUnavailable": 75,
    "Timeout": 75,
    "BadConfiguration": 78,
}


def test_no_room_now_is_worth_a_retry_and_never_fits_is_not() -> None:
    assert errors.InsufficientSpace().retryable
    assert not errors.TooLarge().retryable


def test_what_one_instance_says_of_retrying_travels_too() -> None:
    error = errors.OriginUnavailable("its certificate is wrong")
    error.retryable = False
    assert not from_problem(error.to_problem()).retryable
    assert errors.OriginUnavailable().retryable


def test_an_unknown_code_becomes_a_plain_error_that_keeps_its_words() -> None:
    got = from_problem({"code": "from_the_future", "detail": "new trouble", "hint": "upgrade", "retryable": True})
    assert type(got) is HotshelfError
    assert (got.message, got.hint, got.retryable) == ("new trouble", "upgrade", True)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)
members = ["type", "title", "status", "detail", "code", "hint", "retryable", "retry_after_s", "details"]


@given(st.dictionaries(st.sampled_from(members), any_json))
def test_whatever_a_daemon_answers_becomes_an_error_one_can_print(problem: dict[str, object]) -> None:
    got = from_problem(problem)
    assert isinstance(got, HotshelfError)
    assert str(got)
    assert got.message


@pytest.mark.parametrize("name", ["message", "hint", "retry_after_s", "self"])
def test_details_named_like_an_arguments_do_not_break_the_reviving(name: str) -> None:
    got = from_problem({"code": "not_found", "detail": "gone", "hint": "look", "details": {name: "x"}})
    assert isinstance(got, errors.NotFound)
    assert got.message == "gone"
