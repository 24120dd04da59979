"""How many connections are kept, given what they brought; how long what nobody waits for has to wait."""

from __future__ import annotations

import random
import statistics

import pytest

from hotshelf_daemon.ingest.pacing import CALM_S, FEWEST, FEWEST_BUSY, FIRST, PATIENCE, TRIES, Climb, Rate

MOMENT_S = 0.1


class Origin:
    """Brings `each` bytes a second on a connection, `total` at the most."""

    def __init__(self, climb: Climb, each: float, total: float = 1e12) -> None:
        self.climb, self.each, self.total, self.now, self.is_busy = climb, each, total, 100.0, False

    def moments(self, count: int) -> int:
        for _ in range(count):
            self.now += MOMENT_S
            self.climb.moment(min(self.total, self.each * self.climb.limit), self.now, is_busy=self.is_busy)
        return self.climb.limit

    def refuses(self) -> int:
        self.climb.refused(self.now)
        return self.climb.limit


def test_an_origin_that_is_slow_on_each_connection_gets_all_there_are() -> None:
    assert Origin(Climb(64), each=60e6).moments(5) == 64


@pytest.mark.parametrize("most", [1, 3, 8, 100])
def test_there_are_never_more_than_allowed_and_it_begins_with_a_few(most: int) -> None:
    climb = Climb(most)
    assert climb.limit == min(FIRST, most)
    assert Origin(climb, each=1e6).moments(50) == most


def test_an_origin_that_brings_no_more_on_more_of_them_keeps_what_it_has() -> None:
    assert Origin(Climb(64), each=60e6, total=500e6).moments(6) == FIRST


def test_more_are_tried_now_and_then_and_kept_when_they_help_by_now() -> None:
    origin = Origin(Climb(64), each=60e6, total=480e6)
    assert origin.moments(10) == FIRST
    origin.total = 1e12
    assert origin.moments(PATIENCE + 5) == 64


def test_a_refusal_halves_them_and_those_of_one_moment_are_one() -> None:
    origin = Origin(Climb(16), each=60e6)
    origin.moments(5)
    assert [origin.refuses() for _ in range(10)] == [8] * 10
    origin.now += 2
    assert origin.refuses() == 4


def test_at_least_one_is_left_however_often_it_refuses() -> None:
    origin = Origin(Climb(16), each=60e6)
    for _ in range(20):
        origin.refuses()
        origin.now += 2
    assert origin.climb.limit == 1


def test_after_a_refusal_it_is_calm_for_a_while_and_then_climbs_again() -> None:
    origin = Origin(Climb(16), each=60e6)
    origin.refuses()
    assert origin.moments(int(CALM_S / MOMENT_S) - 1) == FIRST // 2
    assert origin.moments(10) == 16


def test_an_origin_that_has_become_another_one_is_climbed_anew() -> None:
    origin = Origin(Climb(64), each=60e6, total=900e6)
    settled = origin.moments(10)
    origin.each, origin.total = 5e6, 1e12
    assert origin.moments(15) == 64 > settled


def test_an_origin_that_is_as_fast_with_fewer_keeps_few() -> None:
    assert Origin(Climb(64), each=300e6, total=600e6).moments(20) == FEWEST


def test_an_origin_that_is_faster_with_fewer_is_held_to_what_they_brought() -> None:
    origin = Origin(Climb(16), each=1e9, total=500e6)
    origin.moments(4)  # eight, then sixteen: no more
    origin.total = 900e6  # the processors have nothing else to do now
    assert origin.moments(3) == FEWEST
    origin.total = 530e6
    assert origin.moments(3) == 8


def test_what_falls_when_fewer_are_tried_goes_back_at_once_and_is_not_tried_again() -> None:
    origin = Origin(Climb(64), each=60e6, total=480e6)
    assert [origin.moments(1) for _ in range(6)] == [16, 16, 16, 4, 8, 8]
    assert FEWEST not in [origin.moments(1) for _ in range(3 * PATIENCE)]


def test_one_bad_moment_of_more_does_not_condemn_them() -> None:
    origin = Origin(Climb(12), each=60e6)
    assert origin.moments(1) == 12
    origin.total = 389e6  # new connections wait for their first byte
    assert origin.moments(1) == 12
    origin.total = 1e12
    assert origin.moments(20) == 12


def test_what_more_have_helped_is_not_given_up_for_fewer() -> None:
    origin = Origin(Climb(16), each=60e6)
    assert origin.moments(5) == 16
    assert min(origin.moments(1) for _ in range(3 * PATIENCE)) == 16


def busy(climb: Climb, each: float, total: float = 1e12) -> Origin:
    origin = Origin(climb, each, total)
    origin.is_busy = True
    return origin


def test_where_processors_are_the_bound_two_are_kept_and_more_are_tried_now_and_then() -> None:
    origin = busy(Climb(64), each=300e6, total=600e6)
    assert max(origin.moments(1) for _ in range(20)) == FIRST
    kept = [origin.moments(1) for _ in range(3 * PATIENCE)]
    assert set(kept) == {FEWEST_BUSY, 2 * FEWEST_BUSY}
    assert kept.count(FEWEST_BUSY) >= 0.9 * len(kept)


def test_fewer_that_bring_less_are_not_kept_however_busy_the_processors_are() -> None:
    assert busy(Climb(64), each=60e6).moments(20) == FIRST


def test_more_that_help_are_kept_however_busy_the_processors_are() -> None:
    assert busy(Climb(64), each=60e6).moments(2 * PATIENCE) == 64


def test_more_that_make_the_processors_busy_and_bring_nothing_are_given_up_for_few() -> None:
    origin = Origin(Climb(64), each=60e6, total=480e6)
    assert origin.moments(1) == 2 * FIRST
    origin.is_busy = True
    assert origin.moments(TRIES) == FIRST
    origin.each = 480e6
    assert origin.moments(20) == FEWEST_BUSY


def test_processors_that_get_busy_when_a_number_is_settled_are_noticed_soon() -> None:
    origin = Origin(Climb(16), each=60e6)
    assert origin.moments(5) == 16
    origin.is_busy, origin.each, origin.total = True, 600e6, 960e6
    assert origin.moments(20) == FEWEST_BUSY


def test_one_busy_moment_changes_nothing() -> None:
    origin = Origin(Climb(64), each=60e6)
    for number in range(3 * PATIENCE):
        origin.is_busy = number % 7 == 0
        limit = origin.moments(1)
        assert limit == 64 or number < 6


def test_after_refusals_more_are_tried_again_however_busy_the_processors_are() -> None:
    origin = busy(Climb(16), each=60e6)
    for _ in range(4):
        origin.refuses()
        origin.now += 2
    assert origin.climb.limit == 1
    assert origin.moments(int(CALM_S / MOMENT_S) + 3 * PATIENCE) == 16


def test_when_processors_have_time_again_more_are_tried() -> None:
    origin = busy(Climb(64), each=60e6, total=120e6)
    assert origin.moments(20) == FEWEST_BUSY
    origin.is_busy, origin.total = False, 1e12
    assert origin.moments(PATIENCE + 10) == 64


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("two_bring", "least", "most"), [(1.05, 2, 5.5), (0.6, 5.5, 16)], ids=["as much", "less"])
def test_uneven_moments_do_not_lead_astray_for_long(two_bring: float, seed: int, least: float, most: float) -> None:
    """What a number brings, with a fifth of noise: eight and more the same, two that share of it, four half way."""
    drawn, climb, now, kept = random.Random(seed), Climb(16), 100.0, []
    for _ in range(20 * PATIENCE):
        now += MOMENT_S
        even = {2: two_bring, 4: (1 + two_bring) / 2}.get(climb.limit, 1.0)
        climb.moment(500e6 * even * drawn.gauss(1, 0.2), now, is_busy=drawn.random() < 0.9)
        kept.append(climb.limit)
    assert least <= statistics.mean(kept) <= most


class Clock:
    now = 50.0

    def __call__(self) -> float:
        return self.now


def test_a_rate_is_kept_over_all_who_ask() -> None:
    clock = Clock()
    rate, waited = Rate(1_000_000, now=clock), 0.0
    for _ in range(100):
        waits = rate.wait_s(50_000)
        clock.now += waits
        waited += waits
    assert waited == pytest.approx(5.0, abs=0.1)


def test_a_pause_earns_no_more_than_a_moment_s_worth() -> None:
    clock = Clock()
    rate = Rate(1_000_000, now=clock)
    rate.wait_s(1)
    clock.now += 3_600
    assert rate.wait_s(1_000_000) >= 0.9


def test_no_rate_is_no_wait() -> None:
    assert Rate(0).wait_s(1 << 40) == 0
