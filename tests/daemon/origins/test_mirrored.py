"""Mirrors: which are asked, for what, and what they cost when they are away, lack something or lie."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from hashlib import md5

import pytest

from hotshelf_daemon.config import Settings
from hotshelf_daemon.config.settings import OriginSettings
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.origin import Body, Changed, MemoryOrigin, Mirrored, Origin, SplicedBody, itself
from hotshelf_daemon.origin.mirrored import AWAY_S, LEFT_S, LIED_S, MOST_KNOWN, PASSED_OVER_S, SLOW_RATE, ways_to
from hotshelf_shared.digest import Digest
from hotshelf_shared.errors import AccessDenied, HotshelfError, IntegrityError, OriginUnavailable

DATA = b"weights"
KEY = f"m/blobs/sha256/{Digest.of(DATA).hex}"
BLOB = OriginObject(KEY, len(DATA), "")
MANIFEST = f"m/manifests/{Digest.of(DATA).hex}.json"


class Told(MemoryOrigin):
    """Remembers what it was asked; `error` is what it raises instead."""

    def __init__(self, objects: dict[str, bytes] | None = None, error: HotshelfError | None = None) -> None:
        super().__init__()
        self.objects.update(objects or {})
        self.error = error

    @property
    def asked(self) -> list[str]:
        return [key for _, key, _, _ in self.requests]

    def _ask(self, verb: str, key: str, start: int = 0, stop: int = 0) -> None:
        super()._ask(verb, key, start, stop)
        if self.error is not None:
            raise self.error


def refusing(error: type[HotshelfError]) -> Told:
    return Told(error=error("as scripted"))


class Time:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def bytes_of(origin: Origin, obj: OriginObject = BLOB) -> bytes:
    buffer = bytearray(obj.size)
    with origin.open(obj, 0, obj.size) as body:
        assert body.readinto(memoryview(buffer)) == obj.size
    return bytes(buffer)


def test_the_first_mirror_that_has_a_blob_gives_it() -> None:
    empty, full, last, origin = Told(), Told({KEY: DATA}), Told({KEY: DATA}), Told({KEY: DATA})
    assert bytes_of(Mirrored(origin, [[empty], [full], [last]])) == DATA
    assert (empty.asked, full.asked, last.asked, origin.asked) == ([KEY], [KEY], [], [])


def test_where_no_mirror_has_it_the_origin_does() -> None:
    odd, origin = [Told(), *map(refusing, (OriginUnavailable, AccessDenied, IntegrityError, Changed))], Told({KEY: DATA})
    assert bytes_of(Mirrored(origin, [[one] for one in odd])) == DATA
    assert all(one.asked == [KEY] for one in odd)
    assert origin.asked == [KEY]


@pytest.mark.parametrize("obj", [replace(BLOB, version=md5(DATA).hexdigest()), replace(BLOB, key="m/unet.safetensors")])
def test_what_does_not_bear_its_digest_is_not_asked_of_a_mirror(obj: OriginObject) -> None:
    mirror, origin = Told({obj.key: DATA}), Told({obj.key: DATA})
    assert bytes_of(Mirrored(origin, [[mirror]]), obj) == DATA
    assert mirror.asked == []


def test_what_is_mutable_is_read_from_the_origin_and_a_manifest_from_the_mirror() -> None:
    mirror, origin = Told({MANIFEST: DATA, "m/hotshelf.json": b"old"}), Told({"m/hotshelf.json": b"new"})
    mirrored = Mirrored(origin, [[mirror]])
    assert (mirrored.read("m/hotshelf.json", 100), mirrored.read(MANIFEST, 100)) == (b"new", DATA)
    assert (mirror.asked, origin.asked) == ([MANIFEST], ["m/hotshelf.json"])


def test_a_manifest_that_is_not_what_its_name_says_is_read_elsewhere_and_not_asked_for_again_at_once() -> None:
    liar, right, origin = Told({MANIFEST: b"another", KEY: DATA}), Told({MANIFEST: DATA}), Told({MANIFEST: DATA})
    mirrored = Mirrored(origin, [[liar], [right]], clock=Time())
    assert mirrored.read(MANIFEST, 100) == mirrored.read(MANIFEST, 100) == DATA
    assert (liar.asked, right.asked, origin.asked) == ([MANIFEST], [MANIFEST, MANIFEST], [])


def test_a_way_that_answers_something_for_everything_is_not_taken_for_the_right_one() -> None:
    soft, right, origin = Told({MANIFEST: b"{}"}), Told({MANIFEST: DATA, KEY: DATA}), Told()
    mirrored = Mirrored(origin, [[soft, right]], clock=Time())
    assert mirrored.read(MANIFEST, 100) == bytes_of(mirrored) == DATA
    assert (soft.asked, origin.asked) == ([MANIFEST], [])


def test_after_a_lie_another_way_is_tried_first() -> None:
    lying, right, origin, time = Told({KEY: b"WEIGHTS"}), Told({KEY: DATA}), Told({KEY: DATA}), Time()
    mirrored = Mirrored(origin, [[lying, right]], clock=time)
    assert bytes_of(mirrored) == b"WEIGHTS"
    assert mirrored.lied(KEY)
    time.now = LIED_S + 1
    assert bytes_of(mirrored) == DATA
    assert (len(lying.asked), origin.asked) == (1, [])


def test_what_a_mirror_has_not_got_it_is_not_asked_for_again_at_once() -> None:
    mirror, origin, time = Told(), Told({KEY: DATA}), Time()
    mirrored = Mirrored(origin, [[mirror]], clock=time)
    for now in (0.0, PASSED_OVER_S - 1, PASSED_OVER_S + 1):
        time.now = now
        assert bytes_of(mirrored) == DATA
    assert len(mirror.asked) == 2


@pytest.mark.parametrize(("asked_to_wait", "rest_s"), [(None, AWAY_S), (45.0, 45.0)])
def test_a_mirror_that_is_away_rests_for_everything_and_as_long_as_it_asks(asked_to_wait: float | None, rest_s: float) -> None:
    mirror, origin, time = Told(error=OriginUnavailable("away", retry_after_s=asked_to_wait)), Told({KEY: DATA}), Time()
    origin.objects[KEY.replace("m/", "n/")] = DATA
    mirrored = Mirrored(origin, [[mirror]], clock=time)
    for now, key in ((0.0, KEY), (rest_s - 1, KEY.replace("m/", "n/"))):
        time.now = now
        assert bytes_of(mirrored, replace(BLOB, key=key)) == DATA
    assert len(mirror.asked) == 1
    time.now, mirror.error, mirror.objects = rest_s + 1, None, {KEY: DATA}
    assert bytes_of(mirrored) == DATA
    assert len(mirror.asked) == 2


def test_a_body_that_breaks_off_makes_the_mirror_rest() -> None:
    mirror, origin = Told({KEY: DATA}), Told({KEY: DATA})
    mirrored = Mirrored(origin, [[mirror]], clock=Time())
    with pytest.raises(OriginUnavailable), mirrored.open(BLOB, 0, 3):
        raise OriginUnavailable("it ended early")
    assert bytes_of(mirrored) == DATA
    assert len(mirror.asked) == 1


class Dripping:
    """A body that brings `pieces` bytes at a time, each so many seconds later."""

    def __init__(self, time: Time, seconds: float, piece: int) -> None:
        self._time, self._seconds, self._piece = time, seconds, piece

    def readinto(self, _buffer: memoryview, /) -> int:
        self._time.now += self._seconds
        return self._piece


class Slow(Told):
    def __init__(self, time: Time, seconds: float, piece: int) -> None:
        super().__init__()
        self._body = Dripping(time, seconds, piece)

    def open(self, obj: OriginObject, start: int, stop: int) -> AbstractContextManager[Body]:
        self._ask("open", obj.key)
        return nullcontext(self._body)


def read_on(mirrored: Mirrored, times: int) -> None:
    with mirrored.open(BLOB, 0, 7) as body:
        for _ in range(times):
            body.readinto(memoryview(bytearray(1)))


def test_a_mirror_that_brings_next_to_nothing_rests_and_one_that_is_slow_does_not() -> None:
    time = Time()
    dripping, slow, origin = Slow(time, 1.0, SLOW_RATE // 2), Slow(time, 1.0, 2 * SLOW_RATE), Told({KEY: DATA})
    with pytest.raises(OriginUnavailable):
        read_on(Mirrored(origin, [[dripping]], clock=time), 30)
    read_on(mirrored := Mirrored(origin, [[slow]], clock=time), 30)
    read_on(mirrored, 1)
    assert (len(slow.asked), origin.asked) == (2, [])


def test_a_mirror_that_gave_up_a_reader_who_stayed_away_is_asked_again() -> None:
    mirror, time = Told({KEY: DATA}), Time()
    mirrored = Mirrored(Told(), [[mirror]], clock=time)

    def reading() -> None:
        with mirrored.open(BLOB, 0, 3) as body:
            time.now += LEFT_S + 1  # others went first
            body.readinto(memoryview(bytearray(1)))
            raise OriginUnavailable("it ended early")

    with pytest.raises(OriginUnavailable):
        reading()
    assert bytes_of(mirrored) == DATA


def test_whoever_stops_reading_says_nothing_of_the_mirror() -> None:
    mirror = Told({KEY: DATA})
    mirrored = Mirrored(Told(), [[mirror]], clock=Time())
    with pytest.raises(KeyboardInterrupt), mirrored.open(BLOB, 0, 3):
        raise KeyboardInterrupt
    assert bytes_of(mirrored) == DATA


def test_only_mirrors_that_gave_something_of_it_are_accused() -> None:
    away, liar, time = Told(error=OriginUnavailable("away")), Told({KEY: b"WEIGHTS"}), Time()
    origin = Told({KEY: DATA})
    away.label, liar.label = "away", "liar"
    mirrored = Mirrored(origin, [[away], [liar]], clock=time)
    assert bytes_of(mirrored) == b"WEIGHTS"  # nobody here can know better
    assert mirrored.lied(KEY) == ("liar",)
    assert mirrored.lied(KEY) == ()
    for now in (1.0, LIED_S - 1):
        time.now = now
        assert bytes_of(mirrored) == DATA
    assert len(liar.asked) == 1


def test_itself_has_no_mirrors() -> None:
    origin = Told()
    assert itself(Mirrored(origin, [[Told()]])) is origin
    assert itself(origin) is origin


def test_what_is_known_of_objects_has_a_bound() -> None:
    mirror, origin = Told(), Told({KEY: DATA})
    mirrored = Mirrored(origin, [[mirror]], clock=Time())
    assert bytes_of(mirrored) == DATA
    for number in range(MOST_KNOWN):
        other = f"m/blobs/sha256/{number:064x}"
        origin.objects[other] = DATA
        assert bytes_of(mirrored, replace(BLOB, key=other)) == DATA
    assert bytes_of(mirrored) == DATA
    assert mirror.asked.count(KEY) == 2  # the oldest is forgotten


@pytest.mark.parametrize(
    ("mirror", "urls"),
    [
        ("http://weed:8333", ["http://weed:8333/we%20ights/a%20b/c", "http://weed:8333/a%20b/c"]),
        ("https://cdn.example.com/x/", ["https://cdn.example.com/x/we%20ights/a%20b/c", "https://cdn.example.com/x/a%20b/c"]),
        ("https://f.example.com/file/{bucket}/{key}", ["https://f.example.com/file/we%20ights/a%20b/c"]),
        ("https://{bucket}.example.com/{key}", ["https://we%20ights.example.com/a%20b/c"]),
    ],
)
def test_a_mirror_is_asked_where_it_says_or_as_s3_and_as_a_domain_of_one_bucket_would_be(mirror: str, urls: list[str]) -> None:
    asked: list[str] = []

    class Listening:
        def read(self, url: str, _limit: int) -> None:
            asked.append(url)

    for way in ways_to(mirror, "we ights", OriginSettings(), Settings()):
        way._web = Listening()  # type: ignore[assignment]
        way.read("a b/c", 10)
    assert asked == urls


def test_a_mirror_named_by_its_bucket_may_be_asked_and_no_other_port_of_it() -> None:
    [way] = ways_to("http://{bucket}.example.com:8080/{key}", "weights", OriginSettings(), Settings())
    allowed = way._web._terms_for
    for url in ("http://weights.example.com:8080/k", "https://weights.example.com/k"):
        assert allowed(url) is not None
    for url in ("https://weights.example.com:6443/k", "http://weights.example.com/k", "http://example.com:8080/k"):
        assert allowed(url) is None


def test_the_way_that_led_somewhere_is_gone_from_then_on() -> None:
    other = KEY.replace("m/", "n/")
    wrong, right, origin = Told(), Told({KEY: DATA, other: DATA}), Told()
    mirrored = Mirrored(origin, [[wrong, right]])
    assert bytes_of(mirrored) == bytes_of(mirrored, replace(BLOB, key=other)) == DATA
    assert (wrong.asked, right.asked) == ([KEY], [KEY, other])


def test_what_a_mirror_gives_can_be_spliced() -> None:
    class Spliced:
        def readinto(self, _buffer: memoryview) -> int:
            return 0

        def splice(self, _pipe: int, _most: int) -> int:
            return 0

    class Splicing(Told):
        def open(self, _obj: OriginObject, _start: int, _stop: int) -> AbstractContextManager[Body]:
            return nullcontext(Spliced())

    with Mirrored(Told(), [[Splicing()]]).open(BLOB, 0, 1) as body:
        assert isinstance(body, SplicedBody)
