"""Weights on their way to a device: the ring on every device there is, what is carried of modules, and which way is chosen."""

from __future__ import annotations

import gc
import itertools
import pathlib
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hotshelf
from hotshelf.pipelines import lastmile
from hotshelf.pipelines.lastmile import carry, place, weights
from hotshelf.pipelines.lastmile.cuda import Cuda
from hotshelf.pipelines.lastmile.device import Twin
from hotshelf.pipelines.lastmile.ring import LEAST_SLOT_BYTES, MOST_SLOT_BYTES, SLOTS, Ring, bytes_of, loads, slot_bytes
from hotshelf.pipelines.lastmile.ways import Choice, Ways, faster, samples
from hotshelf_shared.errors import BadConfiguration, HotshelfError
from tests.pipelines.conftest import Library, draw

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.torch

SLOT = 512


@pytest.fixture(params=["late", "at once", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> Any:
    """The contract is run on each."""
    return Cuda("cuda") if request.param == "cuda" else Twin(late=request.param == "late")


def content(tensor: Any) -> bytes:
    return bytes(bytes_of(tensor.cpu()).numpy().tobytes())


def noise(size: int, seed: int = 0) -> Any:
    return torch.randint(0, 256, (size,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def assert_same(copies: Sequence[Any], tensors: Sequence[Any]) -> None:
    for copy, tensor in zip(copies, tensors, strict=True):
        assert (copy.dtype, copy.shape, copy.stride()) == (tensor.dtype, tensor.shape, tensor.stride())
        assert content(copy) == content(tensor)
        assert copy.data_ptr() != tensor.data_ptr() or not tensor.numel()


def threads_of_the_ring() -> list[str]:
    return [one.name for one in threading.enumerate() if one.name.startswith("hotshelf-lastmile")]


# ---- the ring: the contract


@pytest.mark.parametrize("slots", [1, 2, 8])
def test_every_byte_arrives_whatever_the_sizes(device: Any, slots: int) -> None:
    sizes = [0, 1, SLOT - 1, SLOT, SLOT + 1, 0, 7, 7, 7, 40 * SLOT + 3, *range(0, 300, 17), 255, 256, 257, 0]
    tensors = [noise(size, seed) for seed, size in enumerate(sizes)]
    assert_same(Ring(device, SLOT, slots=slots).carry(tensors), tensors)


def test_nothing_at_all_is_carried_too(device: Any) -> None:
    assert Ring(device, SLOT, slots=2).carry([]) == []
    assert_same(Ring(device, SLOT, slots=2).carry([torch.empty(0, 3)]), [torch.empty(0, 3)])


@pytest.mark.parametrize(
    "dtype",
    [
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "float4_e2m1fn_x2"),
        *("int64", "int8", "uint16", "bool", "complex64"),
    ],
)
def test_every_dtype_keeps_its_bits(device: Any, dtype: str) -> None:
    kind = getattr(torch, dtype)
    tensor = noise(48 * kind.itemsize, 3).view(kind) if dtype != "bool" else noise(48) > 99
    assert_same(
        Ring(device, SLOT, slots=2).carry([tensor.reshape(6, 8), tensor[5:6].reshape(())]), [tensor.reshape(6, 8), tensor[5]]
    )


def test_strides_stay_and_views_into_one_storage_are_carried_by_themselves(device: Any) -> None:
    whole = noise(4096).view(torch.float32)  # as tensors that are mapped from one file lie
    tensors = [
        whole[3:27].reshape(2, 3, 4),
        whole[24:84].reshape(5, 12).t(),
        whole[100:196].reshape(2, 3, 4, 4).to(memory_format=torch.channels_last),
        whole,
    ]
    copies = Ring(device, SLOT, slots=3).carry(tensors)
    assert_same(copies, tensors)
    copies[3].zero_()
    assert content(copies[0]) == content(tensors[0])


def test_a_ring_is_used_again(device: Any) -> None:
    ring = Ring(device, SLOT, slots=3)
    for seed in range(4):
        tensors = [noise(5 * SLOT + seed, seed), noise(9, seed)]
        assert_same(ring.carry(tensors), tensors)


class Failing(Twin):
    """Raises `error` at the copy of that number, or when it is waited for the end."""

    def __init__(self, error: BaseException, *, at: int | None = None, late: bool = True, name: str = "twin") -> None:
        super().__init__(late=late, name=name)
        self.error: BaseException | None = error
        self.at, self.copied = at, 0

    def copy(self, to: Any, source: Any) -> None:
        self.copied += 1
        if self.copied == self.at:
            self._fail()
        super().copy(to, source)

    def finish(self) -> None:
        super().finish()
        if self.at is None:
            self._fail()

    def _fail(self) -> None:
        if self.error is not None:
            error, self.error = self.error, None
            raise error

    @property
    def under_way(self) -> int:
        return len(self._begun)


@pytest.mark.parametrize("late", [True, False])
@pytest.mark.parametrize("at", [1, 2, 7, None])
@pytest.mark.parametrize("error", [RuntimeError("CUDA error: unknown error"), KeyboardInterrupt(), MemoryError()])
def test_an_error_or_a_cancellation_in_the_middle_leaves_nothing_under_way(
    error: BaseException, at: int | None, late: bool
) -> None:
    device = Failing(error, at=at, late=late)
    ring = Ring(device, SLOT, slots=3)
    tensors = [noise(20 * SLOT), noise(3)]
    with pytest.raises(type(error)):
        ring.carry(tensors)
    assert (device.under_way, threads_of_the_ring()) == (0, [])
    assert_same(ring.carry(tensors), tensors)  # and it works again


def test_an_error_of_a_mark_is_raised_where_the_ring_was_started() -> None:
    class Mark:
        def synchronize(self) -> None:
            raise RuntimeError("CUDA error: an illegal memory access was encountered")

    class Device(Twin):
        def mark(self) -> Any:
            return Mark()

    with pytest.raises(RuntimeError, match="illegal memory access"):
        Ring(Device(), SLOT, slots=2).carry([noise(20 * SLOT)])
    assert threads_of_the_ring() == []


# ---- the ring: what is decided


@given(st.lists(st.integers(0, 3000), max_size=20), st.sampled_from([1, 100, 256, 512, 1000]))
def test_slots_hold_every_byte_once_and_in_order(sizes: list[int], slot: int) -> None:
    found = [0] * len(sizes)
    for load in loads(sizes, slot):
        end = 0
        assert load
        for piece in load:
            assert piece.size > 0
            assert end <= piece.at
            assert piece.at + piece.size <= slot
            assert piece.start == found[piece.tensor]
            end = piece.at + piece.size
            found[piece.tensor] += piece.size
    assert found == sizes


def test_small_tensors_share_a_slot() -> None:
    assert len(list(loads([10] * 100, 256 * 100))) == 1


def test_a_ring_takes_a_quarter_of_what_is_free_at_most_and_none_where_that_is_little() -> None:
    assert slot_bytes(100 << 30, float("inf")) == slot_bytes(100 << 30, 64 << 30) == MOST_SLOT_BYTES
    assert slot_bytes(100 << 30, 300 << 20) * SLOTS == 64 << 20
    assert slot_bytes(40 << 20, 64 << 30) == 4 << 20
    assert slot_bytes(1, 64 << 30) == LEAST_SLOT_BYTES
    assert slot_bytes(100 << 30, 31 << 20) == slot_bytes(1, 0) == 0


def test_the_faster_way_is_kept_and_the_plain_one_where_they_are_alike() -> None:
    assert faster([5e9, 1e9], [4e9, 48.5e9]) == Choice("ring", "plain 5 GB/s, ring 48.5 GB/s")
    assert faster([5e9, 4e9], [5.2e9, 1e9]).way == "plain"
    assert faster([5e9, 4e9], [1e9, 1e9]).way == "plain"


def test_samples_are_the_first_tensors_by_turns() -> None:
    assert samples([4, 4, 9, 1, 7, 8, 3], 8) == [slice(0, 2), slice(2, 3), slice(3, 5), slice(5, 6)]
    assert samples([4, 4, 9, 1, 7, 7], 8) is None
    assert samples([], 8) is None


# ---- modules


def carried(*modules: Any, device: Twin | None = None, wish: str = "ring", **options: Any) -> Any:
    there = device or Twin()
    return carry(modules, lambda: there, wish, **{"ways": Ways(), **options})


def tensors_of(module: Any) -> list[Any]:
    return [*module.parameters(), *module.buffers()]


def test_a_pipeline_that_was_carried_is_the_same_byte_for_byte_and_draws_the_same(
    library: Library, tmp_path: pathlib.Path
) -> None:
    for options in ({}, {"torch_dtype": torch.float16}):
        plain, ours = library.plain(library.sd, **options), library.plain(library.sd, **options)
        before = {id(one): one.data_ptr() for part in weights.modules_of(ours) for one in part.parameters()}
        assert carried(*weights.modules_of(ours)).to_json()["way"] == "ring"
        for part, twin in zip(weights.modules_of(ours), weights.modules_of(plain), strict=True):
            assert_same(tensors_of(part), tensors_of(twin))
            assert part.state_dict().keys() == twin.state_dict().keys()
            assert all(before[id(one)] != one.data_ptr() for one in part.parameters())  # the same objects, elsewhere
        if not options:
            assert draw(ours) == library.plain_image(library.sd)


def test_a_sharded_checkpoint_is_carried_from_its_mapped_files(library: Library, tmp_path: pathlib.Path) -> None:
    from diffusers import UNet2DConditionModel

    unet = library.plain(library.sd).unet
    unet.save_pretrained(tmp_path, max_shard_size="100KB")
    assert list(tmp_path.glob("*.index.json"))
    assert len(list(tmp_path.glob("*-of-*.safetensors"))) > 2
    mapped = UNet2DConditionModel.from_pretrained(tmp_path)
    carried(mapped)
    assert_same(tensors_of(mapped), tensors_of(unet))


def test_tied_weights_stay_tied_and_shared_buffers_shared() -> None:
    class Tied(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)
            self.two.weight = self.one.weight
            self.register_buffer("steps", torch.arange(3), persistent=False)
            self.one.register_buffer("steps", self.steps)
            self.register_buffer("nothing", None)

    tied = Tied()
    before, weight = content(tied.one.weight), tied.one.weight
    size = carried(tied).size
    assert tied.two.weight is tied.one.weight is weight
    assert content(weight) == before
    assert tied.one.steps is tied.steps
    assert size == 8 * 8 * 4 + 2 * 8 * 4 + 3 * 8
    assert "steps" not in tied.state_dict()
    assert weight.requires_grad


def test_what_is_not_just_bytes_in_main_memory_is_left_to_its_own_way() -> None:
    class Quantized(torch.nn.Parameter):  # type: ignore[misc]
        pass

    quantized, hooked, odd = torch.nn.Linear(4, 4), torch.nn.Sequential(torch.nn.Linear(4, 4)), torch.nn.Linear(4, 4)
    quantized.weight = Quantized(torch.ones(4, 4))
    hooked[0]._hf_hook = object()
    odd.weight = torch.nn.Parameter(torch.ones(4, 1).expand(4, 4))
    odd.register_buffer("sparse", torch.eye(3).to_sparse())
    odd.register_buffer("away", torch.empty(3, device="meta"))
    odd.register_buffer("gaps", torch.zeros(8)[::2])
    left = [*tensors_of(quantized), *tensors_of(hooked), odd.weight, odd.sparse, odd.gaps]
    before, bias = [id(one) if one.is_sparse else one.data_ptr() for one in left], odd.bias.data_ptr()
    carried(quantized, hooked, odd)
    assert [id(one) if one.is_sparse else one.data_ptr() for one in left] == before
    assert odd.bias.data_ptr() != bias


# ---- which way


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Paced(Twin):
    """Takes time on `clock` for each byte, `plain` or through the ring, and counts what went plainly."""

    def __init__(self, clock: Clock, *, plain_s: float, ring_s: float) -> None:
        super().__init__()
        self.clock, self.plain_s, self.ring_s = clock, plain_s, ring_s
        self.plain_bytes = self.ring_bytes = 0

    def copy(self, to: Any, source: Any) -> None:
        self.ring_bytes += source.nbytes
        self.clock.now += source.nbytes * self.ring_s
        super().copy(to, source)

    def plainly(self, tensors: Sequence[Any]) -> list[Any]:
        size = sum(one.nbytes for one in tensors)
        self.plain_bytes += size
        self.clock.now += size * self.plain_s
        return super().plainly(tensors)


def layers(count: int = 10, size: int = 4096) -> Any:
    return torch.nn.ParameterList([noise(size, seed).view(torch.float32) for seed in range(count)])


def test_both_ways_are_measured_once_and_the_faster_carries_the_rest() -> None:
    clock = Clock()
    device, ways = Paced(clock, plain_s=1e-9, ring_s=1e-10), Ways(sample_bytes=4096, now=clock)
    for turn in range(3):
        module, same = layers(), layers()
        assert carried(module, device=device, wish="auto", ways=ways).choice == Choice("ring", "plain 1 GB/s, ring 10 GB/s")
        assert_same(tensors_of(module), tensors_of(same))
        assert device.plain_bytes == 2 * 4096  # the samples, the first time
        assert device.ring_bytes == 8 * 4096 + turn * 10 * 4096


def test_where_the_ring_is_no_faster_it_carries_samples_only() -> None:
    clock = Clock()
    device, ways = Paced(clock, plain_s=1e-9, ring_s=1e-9), Ways(sample_bytes=4096, now=clock)
    for moved in (4, 0):  # the second time nothing is to be found out
        module, same = layers(), layers()
        before = [one.data_ptr() for one in module]
        assert carried(module, device=device, wish="auto", ways=ways).choice == Choice("plain", "plain 1 GB/s, ring 1 GB/s")
        assert len(set(before) - {one.data_ptr() for one in module}) == moved
        assert_values(module, same)
        assert (device.plain_bytes, device.ring_bytes) == (2 * 4096, 2 * 4096)


def assert_values(module: Any, same: Any) -> None:
    assert [content(one) for one in tensors_of(module)] == [content(one) for one in tensors_of(same)]


def test_each_device_is_measured_by_itself() -> None:
    ways = Ways(sample_bytes=4096)
    ways.keep("twin", Choice("plain", "found out before"))
    assert carried(layers(), wish="auto", ways=ways).choice.why == "found out before"
    assert carried(layers(), device=Twin(name="other"), wish="auto", ways=ways).choice.why.startswith("plain ")


def test_too_little_to_measure_is_left_alone_and_measured_another_time() -> None:
    ways = Ways(sample_bytes=4096)
    assert carried(layers(3), wish="auto", ways=ways).to_json() == {
        "way": "plain", "why": "too few bytes to tell which way is faster", "bytes": 3 * 4096, "seconds": 0.0,
    }  # fmt: skip
    assert carried(layers(10), wish="auto", ways=ways).choice.why.startswith("plain ")


def test_without_memory_to_pin_it_is_plain_and_the_next_time_is_another() -> None:
    ways, keeping = Ways(sample_bytes=4096), list[int]()

    def room(keep: int) -> float:
        keeping.append(keep)
        return 1 << 20

    assert carried(layers(), wish="auto", ways=ways, room=room).choice == Choice("plain", "there is no memory to pin")
    assert keeping == [10 * 4096]  # the weights themselves stay cached
    assert ways.known("twin") is None


def test_the_setting_plain_does_not_even_look_at_the_device() -> None:
    def device() -> Any:
        raise AssertionError("it was opened")

    assert carry([layers()], device, "plain").choice == Choice("plain", "HOTSHELF_LAST_MILE=plain")
    assert carry([torch.nn.Identity()], device, "auto").choice == Choice("plain", "all weights were there")


class Unpinned(Twin):
    def host_bytes(self, size: int) -> Any:
        raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be…")


def no_device() -> Any:
    raise AssertionError("Torch not compiled with CUDA enabled")


@pytest.mark.parametrize(
    ("device", "why"),
    [
        (Unpinned, "the ring failed: CUDA error: out of memory"),
        (no_device, "the ring failed: Torch not compiled with CUDA enabled"),
    ],
)
@pytest.mark.parametrize("wish", ["auto", "ring"])
def test_whatever_fails_makes_it_plain_and_says_so(device: Callable[[], Any], why: str, wish: str) -> None:
    module, same = layers(), layers()
    ways = Ways(sample_bytes=4096)
    assert carry([module], device, wish, ways=ways).choice == Choice("plain", why)
    assert_values(module, same)
    # Who forces the ring has it tried again, and a device that never was has no name to remember it by.
    assert ways.known("twin") == (Choice("plain", why) if wish == "auto" and device is Unpinned else None)


@pytest.mark.parametrize("at", [1, 2, 5, 8])
def test_a_driver_that_fails_half_way_leaves_every_weight_whole_and_is_not_tried_again(at: int) -> None:
    ways, device = Ways(sample_bytes=4096), Failing(RuntimeError("CUDA error: unspecified launch failure"), at=at)
    ways.now = iter(itertools.chain([0, 9, 9, 10, 10, 19, 19], itertools.repeat(20))).__next__  # the ring is the faster
    module, same = layers(), layers()
    failed = Choice("plain", "the ring failed: CUDA error: unspecified launch failure")
    assert carried(module, device=device, wish="auto", ways=ways).choice == failed
    assert_values(module, same)
    assert carried(layers(), device=device, wish="auto", ways=ways).choice == failed
    assert device.copied == at


def test_a_device_that_is_full_says_so_and_what_was_taken_there_is_given_back() -> None:
    class Full(Twin):
        def room_for(self, tensors: Sequence[Any]) -> list[Any]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")

    ways, module, same = Ways(sample_bytes=4096), layers(), layers()
    with pytest.raises(torch.OutOfMemoryError):
        carried(module, device=Full(), ways=ways)
    assert_values(module, same)
    assert ways.known("twin") is None


def test_what_a_failed_attempt_took_on_the_device_is_free_before_the_plain_way_begins() -> None:
    import weakref

    taken: list[Any] = []

    class Device(Failing):
        def room_for(self, tensors: Sequence[Any]) -> list[Any]:
            found = super().room_for(tensors)
            taken.extend(map(weakref.ref, found))
            return found

    gc.disable()
    try:
        carried(layers(), device=Device(RuntimeError("CUDA error"), at=3))
        assert taken
        assert [one() for one in taken] == [None] * len(taken)
    finally:
        gc.enable()


# ---- load_pipeline


def test_on_the_cpu_weights_are_not_copied_and_explain_says_so(load: Callable[..., Any], library: Library) -> None:
    for options in ({}, {"device": "cpu"}):
        copied = hotshelf.explain(load(library.sd, **options))["copied"]
        assert copied == {"way": "plain", "why": "weights stay where they were read", "bytes": 0, "seconds": 0.0}


class Piped:
    """A pipeline of one module, which notes where it was asked to go, and what was there already."""

    def __init__(self, module: Any, error: Exception | None = None) -> None:
        self.components = {"unet": module, "again": module, "scheduler": object(), "nothing": None}
        self.error, self.asked = error, list[tuple[str, list[int]]]()

    def to(self, device: str) -> None:
        self.asked.append((device, [one.data_ptr() for one in self.components["unet"].parameters()]))  # type: ignore[union-attr]
        if self.error is not None:
            raise self.error


def test_the_ring_goes_first_and_the_pipeline_moves_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = list[str]()

    def cuda(device: str) -> Twin:
        opened.append(device)
        return Twin(name=device)

    monkeypatch.setattr(lastmile, "Cuda", cuda)
    module, same = layers(), layers()
    before, pipe = [one.data_ptr() for one in module], Piped(module)
    told = place(pipe, "cuda:3", environ={"HOTSHELF_LAST_MILE": "ring"}).to_json()
    (asked,) = pipe.asked
    assert (opened, asked[0]) == (["cuda:3"], "cuda:3")
    assert not set(asked[1]) & set(before)
    assert_values(module, same)
    assert (told["way"], told["why"], told["bytes"]) == ("ring", "HOTSHELF_LAST_MILE=ring", 10 * 4096)
    assert told["seconds"] > 0


def test_other_accelerators_have_the_plain_way() -> None:
    pipe = Piped(layers())
    assert place(pipe, "mps", environ={}).choice == Choice("plain", "there is no ring for mps")
    assert [device for device, _ in pipe.asked] == ["mps"]


def test_what_the_plain_way_refuses_is_said_as_ever() -> None:
    with pytest.raises(HotshelfError, match="does not fit on cuda: no kernel image"):
        place(Piped(layers(), RuntimeError("no kernel image")), "cuda", environ={"HOTSHELF_LAST_MILE": "plain"})
    with pytest.raises(torch.OutOfMemoryError):
        place(Piped(layers(), torch.OutOfMemoryError("full")), "cuda", environ={"HOTSHELF_LAST_MILE": "plain"})


def test_a_setting_that_is_none_is_refused_also_where_it_would_not_matter() -> None:
    with pytest.raises(BadConfiguration, match=r"HOTSHELF_LAST_MILE is 'fast'.*auto, plain, ring"):
        place(Piped(layers()), None, environ={"HOTSHELF_LAST_MILE": "fast"})
    assert lastmile.wished({"HOTSHELF_LAST_MILE": " Ring "}) == "ring"
    assert lastmile.wished({"HOTSHELF_LAST_MILE": ""}) == lastmile.wished({}) == "auto"


@pytest.mark.gpu
def test_a_pipeline_that_came_through_the_ring_is_what_plain_diffusers_loads(
    load: Callable[..., Any], library: Library, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOTSHELF_LAST_MILE", "ring")
    plain, ours = library.plain(library.sd).to("cuda"), load(library.sd, device="cuda")
    assert hotshelf.explain(ours)["copied"]["way"] == "ring"
    for part, twin in zip(weights.modules_of(ours), weights.modules_of(plain), strict=True):
        for one, other in zip(tensors_of(part), tensors_of(twin), strict=True):
            assert one.device.type == "cuda"
            assert content(one) == content(other)
