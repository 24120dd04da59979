"""The load-once decorators of Mystic's Pipeline SDK, by their names, for objects of this process.

    @entity
    class Painter:
        @pipe(on_startup=True, run_once=True)
        def load(self): ...

        @pipe
        def predict(self, prompt): ...

As there: what is `on_startup` runs when `startup` is called, else before the first other pipe, wherever it stands; what is
`run_once` runs on its first call and never again, which here is once for each object. A later call returns what the first one
returned. What fails has not run, and is tried again by whoever calls next.
"""

from __future__ import annotations

import functools
import inspect
import threading
import weakref
from collections.abc import Callable, Iterator
from typing import Any, TypeVar, overload

from hotshelf_shared.errors import InvalidRequest

_Function = TypeVar("_Function", bound=Callable[..., Any])
_Class = TypeVar("_Class", bound=type)
_Object = TypeVar("_Object")

_MARK = "__hotshelf_entity__"


class _Stages:
    """What has run for one object."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.results: dict[_Pipe, Callable[[], Any]] = {}
        self.running: set[_Pipe] = set()
        self.begun: set[_Pipe] = set()
        self.started = False
        self.starting = False


class _Pipe:
    """A decorated function, and the method that it becomes in a class."""

    def __init__(self, function: Callable[..., Any], *, on_startup: bool, run_once: bool) -> None:
        functools.update_wrapper(self, function)
        self.function, self.on_startup, self.run_once = function, on_startup, run_once
        self._alone = _Stages()

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        if instance is None:
            return self
        return functools.wraps(self.function)(functools.partial(self.of, instance))

    def __call__(self, *args: Any, **given: Any) -> Any:
        """A function that is no method, or a method called by its class: with its object first."""
        if args and _is_entity(args[0]) and self in _pipes(type(args[0])):
            return self.of(*args, **given)
        return self._run(self._alone, args, given)

    def of(self, instance: object, *args: Any, **given: Any) -> Any:
        """Runs it for `instance`, after what is to run before everything else."""
        stages = _stages_of(instance)
        if _is_entity(instance) and not (self.on_startup or stages.started):
            _start(instance, stages)
        return self._run(stages, (instance, *args), given)

    def _run(self, stages: _Stages, args: tuple[Any, ...], given: dict[str, Any]) -> Any:
        if not self.run_once:
            return self.function(*args, **given)
        if self in stages.results:
            return stages.results[self]()
        with stages.lock:
            if self in stages.running:
                return self.function(*args, **given)  # it calls itself
            if self not in stages.results:
                stages.running.add(self)
                try:
                    result = self.function(*args, **given)
                    is_self = (
                        bool(args) and result is args[0] and _is_entity(result)
                    )  # kept weakly, or it would keep itself alive
                    stages.results[self] = weakref.ref(result) if is_self else lambda: result
                finally:
                    stages.running.discard(self)
            return stages.results[self]()


@overload
def pipe(function: _Function) -> _Function: ...
@overload
def pipe(function: None = None, *, on_startup: bool = False, run_once: bool = False) -> Callable[[_Function], _Function]: ...
def pipe(function: Any = None, *, on_startup: bool = False, run_once: bool = False) -> Any:
    """Marks a method (or function): `on_startup` to run before all others, `run_once` to run on its first call only.

    Raises InvalidRequest for what cannot be: a coroutine's or generator's result is used up when it is returned again, and at
    startup there are no arguments to give.
    """
    if function is None:
        return functools.partial(pipe, on_startup=on_startup, run_once=run_once)
    if isinstance(function, _Pipe) or not inspect.isfunction(function):
        raise InvalidRequest(f"@pipe goes on a function, not on {function!r}"[:200], hint="Put it below all other decorators.")
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction, inspect.isgeneratorfunction)
    if (on_startup or run_once) and any(kind(function) for kind in kinds):
        raise InvalidRequest(
            f"{function.__qualname__} is async or a generator, and has no result to keep", hint="Use a plain function."
        )
    return _Pipe(function, on_startup=on_startup, run_once=run_once)


def entity(cls: _Class) -> _Class:
    """Marks a class whose pipes belong together. Raises InvalidRequest when one that runs at startup wants arguments."""
    if not isinstance(cls, type):
        raise InvalidRequest(f"@entity goes on a class, not on {cls!r}"[:200], hint="Write @entity without parentheses.")
    for one in _pipes(cls):
        if one.on_startup:
            try:
                inspect.signature(one.function).bind(None)
            except TypeError as error:
                raise InvalidRequest(
                    f"{one.function.__qualname__} runs on startup, where it gets no arguments", hint="Give them defaults."
                ) from error
    setattr(cls, _MARK, True)
    return cls


def startup(obj: _Object) -> _Object:
    """Runs what is `on_startup`, the base classes' first, in the order of definition; once. Returns `obj`.

    Others that call it meanwhile wait. What a method raises goes to the caller; those before it are not run again.
    """
    if isinstance(obj, type) or not _is_entity(obj):
        raise InvalidRequest(
            f"startup goes with an object of a class with @entity, not {obj!r}"[:200], hint="Decorate the class."
        )
    _start(obj, _stages_of(obj))
    return obj


def _start(obj: object, stages: _Stages) -> None:
    if stages.started:
        return
    with stages.lock:
        if stages.started or stages.starting:
            return  # a pipe that calls another while it starts
        stages.starting = True
        try:
            for one in _pipes(type(obj)):
                if one.on_startup and one not in stages.begun:
                    one.of(obj)
                    stages.begun.add(one)
            stages.started = True
        finally:
            stages.starting = False


def _pipes(cls: type) -> Iterator[_Pipe]:
    """Those that its objects have, the base classes' first; one that is overridden stands where it was first defined."""
    names = dict.fromkeys(name for base in reversed(cls.__mro__) for name in vars(base))
    found = (inspect.getattr_static(cls, name, None) for name in names)
    return (one for one in found if isinstance(one, _Pipe))


def _is_entity(obj: object) -> bool:
    return getattr(type(obj), _MARK, False) is True


#: By identity: objects may be equal, unhashable, or without room for an attribute, and copies begin anew.
_all: dict[int, tuple[weakref.ref[Any], _Stages]] = {}
_all_lock = threading.RLock()


def _stages_of(obj: object) -> _Stages:
    key = id(obj)
    with _all_lock:
        known = _all.get(key)
        if known is not None and known[0]() is obj:
            return known[1]
        try:
            watch = weakref.ref(obj, lambda gone: _forget(key, gone))
        except TypeError as error:
            raise InvalidRequest(
                f"objects of {type(obj).__name__} cannot be watched", hint='Add "__weakref__" to its __slots__.'
            ) from error
        stages = _Stages()
        _all[key] = (watch, stages)
        return stages


def _forget(key: int, gone: weakref.ref[Any]) -> None:
    with _all_lock:
        if key in _all and _all[key][0] is gone:
            del _all[key]
