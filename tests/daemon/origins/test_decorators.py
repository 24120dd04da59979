"""Retrying asks again when that can help, and counts nothing twice; Counting counts what really passed."""

from __future__ import annotations

import pytest

from hotshelf_daemon.metrics import Metrics
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import MemoryOrigin, Retrying, delay_s
from hotshelf_daemon.origin.counting import Counting
from hotshelf_shared.errors import AccessDenied, IntegrityError, OriginUnavailable


class Flaky(MemoryOrigin):
    """Fails so many times, then answers."""

    def __init__(self, failures: int, error: type[Exception] = OriginUnavailable) -> None:
        super().__init__()
        self.failures, self.error = failures, error

    def head(self, key: str) -> OriginObject | None:
        if self.failures:
            self.failures -= 1
            raise self.error("not now")
        return super().head(key)


def test_what_passes_on_the_last_attempt_is_no_failure() -> None:
    pauses: list[float] = []
    assert Retrying(Flaky(4), 5, sleep=pauses.append).head("a") is None
    assert len(pauses) == 4


def test_attempts_are_bounded() -> None:
    origin = Flaky(5)
    with pytest.raises(OriginUnavailable):
        Retrying(origin, 5, sleep=lambda _: None).head("a")
    assert origin.failures == 0


@pytest.mark.parametrize("error", [AccessDenied, IntegrityError])
def test_what_a_retry_cannot_help_is_raised_at_once(error: type[Exception]) -> None:
    origin = Flaky(5, error)
    with pytest.raises(error):
        Retrying(origin, 5, sleep=lambda _: pytest.fail("it waited")).head("a")
    assert origin.failures == 4


def test_delays_double_up_to_a_bound_and_obey_the_origin() -> None:
    assert [delay_s(n, jitter=lambda: 1.0) for n in (0, 1, 2, 3)] == [0.1, 0.2, 0.4, 0.8]
    assert delay_s(30, jitter=lambda: 1.0) == delay_s(60, jitter=lambda: 1.0) <= 10
    assert delay_s(0, asked=7.0) == 7.0
    assert delay_s(3, jitter=lambda: 0.0) < delay_s(3, jitter=lambda: 1.0)


def test_bytes_and_requests_are_counted_by_origin_and_result() -> None:
    memory, metrics = MemoryOrigin(), Metrics("1")
    memory.objects["a"] = b"12345"
    origin = Counting(memory, metrics)
    seen = origin.head("a")
    assert seen is not None
    with origin.open(seen, 1, 4) as body:
        assert body.readinto(memoryview(bytearray(2))) == 2
        assert body.readinto(memoryview(bytearray(2))) == 1
    memory.offline = True
    with pytest.raises(OriginUnavailable):
        origin.read("a", 10)
    text = metrics.render().decode()
    assert 'hotshelf_origin_bytes_total{origin="memory"} 3.0' in text
    assert 'hotshelf_origin_requests_total{origin="memory",result="ok"} 2.0' in text
    assert 'hotshelf_origin_requests_total{origin="memory",result="origin_unavailable"} 1.0' in text
