"""What is missing, what room it takes and who must go: decided from values alone."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import FrozenInstanceError, fields

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hotshelf_daemon import plan
from hotshelf_daemon.objects import OriginObject
from hotshelf_daemon.plan import Eviction, HeldRef, HeldSnapshot, Holdings, Resolution, WantedFile, WayBack, way_back
from hotshelf_shared.digest import Digest, Revision
from hotshelf_shared.errors import InsufficientSpace, TooLarge
from hotshelf_shared.manifest import FileEntry, Manifest
from hotshelf_shared.wire import Skipped

MIB = 1 << 20


def blob(name: str) -> Digest:
    return Digest.of(name.encode())


def snapshot(name: str, grant: int, *blobs: str, rooted: bool = False) -> HeldSnapshot:
    return HeldSnapshot(Revision.of(name.encode()), grant, frozenset(map(blob, blobs)), rooted)


def shelf(
    *snapshots: HeldSnapshot, budget: int = 100, free: int = 1_000, loose: int = 0, wanted: str = "", **abandoned: int
) -> Holdings:
    """Every blob has 10 bytes."""
    blobs = {digest: 10 for one in snapshots for digest in one.blobs} | {blob(f"loose {n}"): 10 for n in range(loose)}
    return Holdings(
        budget=budget,
        held=10 * len(blobs) + sum(abandoned.values()),
        free=free,
        blobs=blobs,
        snapshots=snapshots,
        wanted=frozenset(map(blob, wanted.split())),
        abandoned=abandoned,
    )


def file(path: str, *, size: int = 10, version: str = "1", digest: str | None = None, key: str = "") -> WantedFile:
    return WantedFile(path, OriginObject(key or f"m/{path}", size, version), blob(digest) if digest else None)


def resolution(*files: WantedFile, published: bool = False, skipped: tuple[Skipped, ...] = ()) -> Resolution:
    return Resolution("s3://b/m", "origin", files, skipped, "tree", published, "wish")


# ---- what is missing


def test_what_is_held_is_not_missing() -> None:
    items = plan.missing([resolution(file("a", digest="A"), file("b", digest="B"))], {blob("A"): 10})
    assert [item.object.key for item in items] == ["m/b"]


def test_what_is_not_known_yet_is_missing() -> None:
    assert len(plan.missing([resolution(file("a"))], {blob("A"): 10})) == 1


def test_a_content_that_several_want_is_fetched_once() -> None:
    one, other = resolution(file("a", digest="A")), resolution(file("x", digest="A", key="n/x"), file("y", digest="A"))
    assert len(plan.missing([one, other], {})) == 1


def test_an_object_that_several_want_is_fetched_once() -> None:
    assert len(plan.missing([resolution(file("a")), resolution(file("z", key="m/a"))], {})) == 1


def test_two_versions_of_an_object_are_two_contents() -> None:
    assert len(plan.missing([resolution(file("a")), resolution(file("a", version="2"))], {})) == 2


def test_the_largest_come_first() -> None:
    items = plan.missing([resolution(file("a", size=1), file("b", size=3), file("c", size=2))], {})
    assert [item.object.size for item in items] == [3, 2, 1]


def test_a_resolution_is_another_when_anything_at_the_origin_is() -> None:
    before = resolution(file("a"), file("b"))
    others = [
        resolution(file("a")),
        resolution(file("a"), file("b", version="2")),
        resolution(file("a"), file("b", size=11)),
        resolution(file("a"), file("b", key="m/c")),
        resolution(file("a"), file("b"), skipped=(Skipped("c.py", "python code"),)),
    ]
    assert len({before.id, *(other.id for other in others)}) == 1 + len(others)


def test_a_resolution_stays_the_same_when_a_digest_was_learnt() -> None:
    assert resolution(file("a")).id == resolution(file("a", digest="A")).id


def test_a_published_digest_is_part_of_the_resolution() -> None:
    one, other = (resolution(file("a", digest=d, version=""), published=True) for d in "AB")
    assert one.id != other.id


def test_a_resolution_promises_a_tree_when_every_digest_is_known_before() -> None:
    files = (file("a", digest="A", size=3), file("b", digest="B", size=4))
    promised = resolution(*files).promised
    assert promised == Manifest.of({"a": FileEntry(blob("A"), 3), "b": FileEntry(blob("B"), 4)})
    assert resolution(*files, file("c")).promised is None
    assert resolution(*files, file("c"), file("d"), file("e")).promised is None
    assert resolution(file("c")).promised is None


def test_a_resolution_is_as_large_as_its_files() -> None:
    assert resolution(file("a", size=3), file("b", size=4, digest="B")).size == 7


def test_what_a_decision_rests_on_cannot_be_changed_afterwards() -> None:
    values = [file("a"), resolution(), plan.missing([resolution(file("a"))], {})[0], snapshot("m", 1), shelf(), Eviction()]
    for value in values:
        with pytest.raises(FrozenInstanceError):
            setattr(value, fields(value)[0].name, None)


# ---- room


def test_whatever_goes_is_an_eviction() -> None:
    assert not Eviction()
    for some in (Eviction(ingests=("i",)), Eviction(snapshots=(Revision.of(b"m"),)), Eviction(blobs=(blob("b"),))):
        assert some


def test_what_frees_more_than_was_lacking_is_the_last_to_go() -> None:
    held = shelf(snapshot("large", 1, "a", "b", "c"), snapshot("small", 2, "d"), budget=40)
    assert plan.make_room(held, 20).snapshots == (Revision.of(b"large"),)
    held = shelf(snapshot("m", 1, "m"), budget=60, one=30, two=20)
    assert plan.make_room(held, 20) == Eviction(("one",), (), (), 30)


def test_as_much_goes_as_a_full_disk_lacks() -> None:
    held = shelf(*(snapshot(str(n), n, str(n)) for n in range(5)), budget=1_000, free=70)
    assert len(plan.make_room(held, 100).snapshots) == 3


def test_nothing_goes_while_there_is_room() -> None:
    assert plan.make_room(shelf(snapshot("m", 1, "a")), 90) == Eviction()


def test_what_exceeds_the_budget_never_fits() -> None:
    with pytest.raises(TooLarge):
        plan.make_room(shelf(), 101)


def test_the_snapshot_leased_longest_ago_goes_first() -> None:
    held = shelf(*(snapshot(name, grant, name) for name, grant in (("new", 9), ("old", 1), ("middle", 5))), budget=30)
    chosen = plan.make_room(held, 10)
    assert (chosen.snapshots, chosen.blobs, chosen.freed) == ((Revision.of(b"old"),), (blob("old"),), 10)


@pytest.mark.parametrize(("budget", "goes"), [(21, ()), (20, ()), (19, (blob("loose 0"),))])
def test_nothing_goes_where_it_just_fits(budget: int, goes: tuple[object, ...]) -> None:
    assert plan.make_room(shelf(loose=1, budget=budget), 10).blobs == goes


def test_no_more_goes_than_must() -> None:
    held = shelf(*(snapshot(str(n), n, str(n)) for n in range(5)), budget=50)
    assert len(plan.make_room(held, 20).snapshots) == 2


def test_what_a_root_holds_stays_however_old() -> None:
    held = shelf(snapshot("old", 1, "old", rooted=True), snapshot("new", 2, "new"), budget=20)
    assert plan.make_room(held, 10).snapshots == (Revision.of(b"new"),)
    with pytest.raises(InsufficientSpace):
        plan.make_room(held, 20)


def test_a_blob_that_another_snapshot_holds_stays() -> None:
    held = shelf(snapshot("old", 1, "shared", "own"), snapshot("new", 2, "shared", rooted=True), budget=20)
    chosen = plan.make_room(held, 10)
    assert (chosen.blobs, chosen.freed) == ((blob("own"),), 10)


def test_two_snapshots_that_share_a_blob_free_it_together() -> None:
    held = shelf(snapshot("one", 1, "shared"), snapshot("two", 2, "shared"), budget=10)
    assert plan.make_room(held, 10).snapshots == (Revision.of(b"one"), Revision.of(b"two"))


def test_a_blob_that_an_acquire_counts_on_stays() -> None:
    held = shelf(snapshot("old", 1, "a"), budget=10, wanted="a")
    with pytest.raises(InsufficientSpace):
        plan.make_room(held, 10)


def test_nobody_s_bytes_go_first_then_interrupted_downloads_then_snapshots() -> None:
    held = shelf(snapshot("m", 1, "m"), loose=1, budget=30, download=10)
    assert plan.make_room(held, 10) == Eviction((), (), (blob("loose 0"),), 10)
    assert plan.make_room(held, 20) == Eviction(("download",), (), (blob("loose 0"),), 20)
    assert plan.make_room(held, 30).snapshots == (Revision.of(b"m"),)


def test_a_full_disk_counts_as_much_as_a_full_budget() -> None:
    held = shelf(snapshot("m", 1, "m"), budget=1_000, free=5)
    assert plan.make_room(held, 10).snapshots == (Revision.of(b"m"),)


def test_the_refusal_says_how_much_is_lacking_and_who_holds_what() -> None:
    holder = {"revision": "sha256:x", "sources": "s3://b/m", "bytes": 10, "leases": 2, "pinned": 1, "uids": "7"}
    with pytest.raises(
        InsufficientSpace, match=r"30 bytes; 10 are lacking of a budget of 30.*holds 10 bytes \(2 leases, pinned\)"
    ):
        plan.make_room(shelf(snapshot("m", 1, "m", rooted=True), loose=1, budget=30), 30, holders=[holder])


names = st.sampled_from("abcdefgh")
snapshots = st.lists(st.tuples(st.frozensets(names, min_size=1), st.integers(0, 9), st.booleans()), max_size=6)


@given(snapshots, st.integers(0, 4), st.frozensets(names, max_size=3), st.integers(1, 12), st.integers(1, 12))
def test_whatever_goes_it_is_enough_and_nobody_s(
    given_snapshots: list[tuple[frozenset[str], int, bool]], loose: int, wanted: frozenset[str], budget: int, need: int
) -> None:
    listed = [snapshot(str(n), grant, *blobs, rooted=rooted) for n, (blobs, grant, rooted) in enumerate(given_snapshots)]
    held = shelf(*listed, budget=10 * budget, loose=loose, wanted=" ".join(wanted))
    try:
        chosen = plan.make_room(held, 10 * need)
    except (TooLarge, InsufficientSpace):
        return
    left = [one for one in listed if one.revision not in chosen.snapshots]
    assert all(not one.rooted for one in listed if one.revision in chosen.snapshots)
    assert not set(chosen.blobs) & {digest for one in left for digest in one.blobs}
    assert not set(chosen.blobs) & held.wanted
    assert len(set(chosen.blobs)) == len(chosen.blobs)
    assert chosen.freed == sum(held.blobs[digest] for digest in chosen.blobs)
    assert held.held - chosen.freed + 10 * need <= held.budget


# ---- ranges


def cut(size: int, segment: int, done: Iterable[tuple[int, int]] = (), *, at_once: int = 1) -> list[tuple[int, int]]:
    ranges, taken = plan.Cut(size, segment, done), []
    while (span := ranges.next(at_once)) is not None:
        taken.append(span)
        assert ranges.taken == len(taken)
    assert ranges.left == 0
    return taken


@given(
    st.integers(0, 300), st.integers(1, 50), st.lists(st.tuples(st.integers(0, 299), st.integers(1, 80)), max_size=5),
    st.integers(1, 20),
)  # fmt: skip
def test_ranges_are_exactly_what_is_not_done(size: int, segment: int, runs: list[tuple[int, int]], at_once: int) -> None:
    done = [(start, min(start + length, size)) for start, length in runs if start < size]
    ranges = cut(size, segment, done, at_once=at_once)
    todo = [byte for start, stop in ranges for byte in range(start, stop)]
    have = {byte for start, stop in done for byte in range(start, stop)}
    assert todo == sorted(set(range(size)) - have)
    assert all(0 < stop - start <= segment for start, stop in ranges)


def test_one_connection_reads_whole_segments_to_the_end() -> None:
    assert cut(100, 30) == [(0, 30), (30, 60), (60, 90), (90, 100)]


@pytest.mark.parametrize(("at_once", "shortest"), [(2, 4 * MIB), (3, 4 * MIB), (8, 4 * MIB), (16, 3 * MIB), (64, MIB)])
def test_ranges_get_shorter_towards_the_end_and_the_last_ones_are_soon_hashed(at_once: int, shortest: int) -> None:
    size, segment = 2_048 * MIB, 16 * MIB
    lengths = [stop - start for start, stop in cut(size, segment, at_once=at_once)]
    assert lengths[0] == segment
    assert lengths[:-1] == sorted(lengths[:-1], reverse=True)
    assert sum(lengths[-at_once:]) <= max(48 * MIB, at_once * MIB)
    assert min(lengths[:-1]) == shortest
    assert {type(length) for length in lengths} == {int}
    assert len(lengths) <= 128 + 4 * at_once


def test_how_much_is_left_is_what_nobody_has_taken() -> None:
    ranges = plan.Cut(100, 30, [(50, 100)])
    assert ranges.left == 50
    ranges.next(1)
    assert (ranges.left, ranges.taken) == (20, 1)


# ---- going back


def tree(**files: str) -> Manifest:
    return Manifest.of({path: FileEntry(blob(data), 1) for path, data in files.items()})


def ref(
    wish: str,
    now: Manifest,
    before: Manifest | None = None,
    *,
    at: float = 1.0,
    releases: tuple[str | None, str | None] = (None, None),
) -> HeldRef:
    """`releases` are of what it is now and was before."""
    return HeldRef(wish, at, now, releases[0], before, releases[1])


OLD, NEW = tree(unet="old", vae="same"), tree(unet="new", vae="same")


def test_one_ref_goes_back_alone_and_one_without_a_past_does_not() -> None:
    assert way_back([ref("w", NEW, OLD)], "w") == WayBack("w")
    assert way_back([ref("w", NEW)], "w") is None
    assert way_back([], "w") is None


def test_the_one_that_was_named_leads_and_else_the_one_that_changed_last() -> None:
    refs = [ref("a", NEW, OLD, at=1), ref("b", NEW, OLD, at=3), ref("c", NEW, OLD, at=2)]
    assert [way.lead for named in ("a", "c", "other") if (way := way_back(refs, named))] == ["a", "c", "b"]
    assert (way := way_back([ref("a", NEW), ref("b", NEW, OLD)], "a")) is not None
    assert (way.lead, way.lost) == ("b", ("a",))


def test_what_shares_no_other_file_stays_and_what_does_goes_back_or_is_forgotten() -> None:
    refs = [
        ref("lead", NEW, OLD),
        ref("part", tree(unet="new"), tree(unet="old")),
        ref("unchanged", tree(vae="same"), tree(vae="older still")),
        ref("unused since", tree(unet="old"), tree(unet="older still")),
        ref("new", tree(unet="new")),
        ref("skipped one", tree(unet="new"), tree(unet="between")),
        ref("elsewhere", tree(config="x")),
    ]
    assert way_back(refs, "lead") == WayBack(
        "lead", back=("part",), stay=("unchanged", "unused since", "elsewhere"), lost=("new", "skipped one")
    )


def test_of_two_that_agree_the_one_goes_back_that_changed_since() -> None:
    def at(wish: str, now: Manifest, before: Manifest, changed: float) -> HeldRef:
        return HeldRef(wish, changed, now, None, before, None, flipped_before=1.0)

    configs = at("configs", tree(config="new"), tree(config="old"), 2.0)
    earlier = at("earlier", tree(notes="now"), tree(notes="then"), 1.0)
    assert way_back([at("lead", NEW, OLD, 2.0), configs, earlier], "lead") == WayBack(
        "lead", back=("configs",), stay=("earlier",)
    )


def test_what_is_part_of_what_goes_back_stays_whatever_published_it() -> None:
    refs = [ref("lead", NEW, OLD, releases=("three", "two")), ref("part", tree(vae="same"), releases=("one", None))]
    assert way_back(refs, "lead") == WayBack("lead", stay=("part",))


def test_published_manifests_say_it_without_looking_at_files() -> None:
    refs = [
        ref("lead", NEW, OLD, releases=("two", "one")),
        ref("disjoint", tree(config="new"), tree(config="old"), releases=("two", "one")),
        ref("disjoint and new", tree(other="new"), releases=("two", None)),
        ref("of that time", tree(notes="x"), releases=("one", "zero")),
    ]
    assert way_back(refs, "lead") == WayBack("lead", back=("disjoint",), stay=("of that time",), lost=("disjoint and new",))
