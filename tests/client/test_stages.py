"""The decorators of the Pipeline SDK: what is loaded is loaded once, before anything else, whoever comes first."""

from __future__ import annotations

import copy
import gc
import subprocess
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest

from hotshelf.adapters.stages import entity, pipe, startup
from hotshelf.errors import InvalidRequest


@entity
@dataclass
class Model:
    """Unhashable, and equal to others, as a dataclass is."""

    ran: list[str] = field(default_factory=list)

    @pipe
    def predict(self, prompt: str) -> str:
        """Draws."""
        self.ran.append(f"predict {prompt}")
        return f"{prompt}!"

    @pipe(on_startup=True, run_once=True)
    def load(self) -> str:
        self.ran.append("load")
        return "loaded"

    @pipe(on_startup=True)
    def check(self) -> None:
        self.ran.append("check")

    @pipe(run_once=True)
    def compile(self, size: int) -> int:
        self.ran.append(f"compile {size}")
        return size


def test_startup_runs_in_order_of_definition_once_and_returns_the_object() -> None:
    model = Model()
    assert startup(model) is model
    startup(model)
    assert model.ran == ["load", "check"]


def test_the_first_pipe_starts_what_was_not_started() -> None:
    model = Model()
    assert model.predict("x") == "x!"
    assert model.predict("y") == "y!"
    assert model.ran == ["load", "check", "predict x", "predict y"]


def test_what_runs_once_returns_what_it_returned_first_and_other_pipes_run_every_time() -> None:
    model = startup(Model())
    assert (model.load(), model.compile(1), model.compile(2)) == ("loaded", 1, 1)
    model.check()
    assert model.ran == ["load", "check", "compile 1", "check"]


def test_what_was_called_by_hand_before_is_not_run_again_at_startup() -> None:
    model = Model()
    model.load()
    assert model.ran == ["load"]
    startup(model)
    assert model.ran == ["load", "check"]


def test_every_object_has_its_own_and_a_copy_begins_anew() -> None:
    first, second = startup(Model()), startup(Model())
    assert first == second
    third = copy.deepcopy(first)
    startup(third)
    assert third.ran == ["load", "check", "load", "check"]
    assert (first.ran, second.ran) == (["load", "check"], ["load", "check"])


def test_threads_that_come_at_once_find_it_loaded_once() -> None:
    model, together = Model(), threading.Barrier(8)

    def draw(number: int) -> str:
        together.wait()
        return model.predict(str(number)) if number % 2 else str(startup(model).predict(str(number)))

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(draw, range(8))) == [f"{number}!" for number in range(8)]
    assert model.ran[:2] == ["load", "check"]
    assert (model.ran.count("load"), model.ran.count("check"), len(model.ran)) == (1, 1, 10)


def test_a_failure_is_the_caller_s_and_leaves_it_to_be_tried_again() -> None:
    class Weak(Model):
        @pipe(on_startup=True, run_once=True)
        def weigh(self) -> None:
            self.ran.append("weigh")
            if self.ran.count("weigh") < 2:
                raise OSError("no weights")

    model = Weak()
    with pytest.raises(OSError, match="no weights"):
        startup(model)
    model.predict("x")
    assert model.ran == ["load", "check", "weigh", "weigh", "predict x"]


def test_base_classes_come_first_and_what_is_overridden_keeps_its_place() -> None:
    @entity
    class Base:
        def __init__(self) -> None:
            self.ran: list[str] = []

        @pipe(on_startup=True, run_once=True)
        def first(self) -> None:
            self.ran.append("base's first")

        @pipe(on_startup=True, run_once=True)
        def second(self) -> None:
            self.ran.append("base's second")

        @pipe(on_startup=True)
        def dropped(self) -> None:
            self.ran.append("dropped")

    @entity
    class Child(Base):
        @pipe(on_startup=True, run_once=True)
        def third(self) -> None:
            self.ran.append("third")

        @pipe(on_startup=True, run_once=True)
        def first(self) -> None:
            super().first()
            self.ran.append("child's first")

        def dropped(self) -> None:
            self.ran.append("not a pipe any more")

    assert startup(Child()).ran == ["base's first", "child's first", "base's second", "third"]


def test_pipes_may_call_each_other_and_themselves_while_they_start() -> None:
    @entity
    class Knot:
        def __init__(self) -> None:
            self.ran: list[str] = []

        @pipe(on_startup=True, run_once=True)
        def load(self, depth: int = 2) -> int:
            self.ran.append(f"load {depth}")
            self.warm()
            return depth and self.load(depth - 1)

        @pipe
        def warm(self) -> None:
            self.ran.append("warm")

    assert startup(Knot()).ran == ["load 2", "warm", "load 1", "warm", "load 0", "warm"]


def test_a_function_alone_is_a_pipe_too() -> None:
    ran: list[int] = []

    @pipe(run_once=True)
    def load(number: int) -> int:
        """Loads."""
        ran.append(number)
        return number

    assert (load(1), load(2), ran) == (1, 1, [1])
    assert (load.__name__, load.__doc__) == ("load", "Loads.")


def test_methods_keep_their_names_and_can_be_called_by_their_class() -> None:
    model = Model()
    assert (model.predict.__name__, Model.predict.__doc__) == ("predict", "Draws.")
    assert Model.predict(model, "x") == "x!"
    assert Model.load(model) == "loaded"
    assert model.ran == ["load", "check", "predict x"]


def test_objects_are_forgotten_with_what_they_loaded_even_when_they_return_themselves() -> None:
    @entity
    class Chained:
        @pipe(on_startup=True, run_once=True)
        def load(self) -> Any:
            return self

    model = startup(Chained())
    assert model.load() is model
    watch = weakref.ref(model)
    del model
    gc.collect()
    assert watch() is None


class Slotted:
    __slots__ = ()


def refused() -> dict[str, Any]:
    async def load(self: object) -> None: ...
    def draws(self: object) -> Any:
        yield 1

    def wants(self: object, prompt: str) -> None: ...

    return {
        "an async function that runs once": lambda: pipe(run_once=True)(load),
        "a generator at startup": lambda: pipe(on_startup=True)(draws),
        "arguments at startup": lambda: entity(type("Wanting", (), {"wants": pipe(on_startup=True)(wants)})),
        "what is no function": lambda: pipe(staticmethod(wants)),
        "entity with parentheses": lambda: entity(None),  # type: ignore[type-var]
        "startup of a class": lambda: startup(Model),
        "startup of anything": lambda: startup(object()),
        "an object that cannot be watched": lambda: startup(entity(type("S", (Slotted,), {"__slots__": ()}))()),
    }


@pytest.mark.parametrize("what", refused())
def test_what_cannot_be_is_refused_with_a_hint(what: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        refused()[what]()
    assert error.value.hint


def test_the_standard_library_is_all_that_it_needs() -> None:
    def tops(script: str) -> set[str]:
        code = f"{script}\nimport sys; print(*{{name.partition('.')[0] for name in sys.modules}})"
        return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())

    loaded = tops("import hotshelf.adapters.stages") - tops("pass")
    assert loaded - set(sys.stdlib_module_names) <= {"hotshelf", "hotshelf_shared"}
