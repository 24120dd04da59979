"""What stands in torch's own place for a compiled call: it runs what is compiled, and says what became of it.

`copy` and `pickle` leave that place out, so a copy of a module is a plain one. Whatever does not fit runs as plain torch would.
"""

from __future__ import annotations

import contextlib
import time
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from hotshelf import compiling
from hotshelf.pipelines.compilation import structure
from hotshelf.pipelines.compilation.calls import Form, Reader, Unfit, shapes_of
from hotshelf.pipelines.compilation.package import MODEL, Package
from hotshelf.pipelines.compilation.report import Report
from hotshelf.pipelines.compilation.workshop import Item, State
from hotshelf.pipelines.loading import first_line
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.errors import HotshelfError

if TYPE_CHECKING:
    import torch

#: Packages are made for so many kinds of calls of one denoiser; a worker that serves more sizes makes them ahead.
MOST_KINDS = 8


class Place:
    """`install` puts it there, `leave` takes it away."""

    def __init__(self, module: torch.nn.Module, report: Report) -> None:
        self._module = weakref.ref(module)
        self._report = report

    def install(self) -> None:
        self.module._compiled_call_impl = self

    def leave(self) -> None:
        module = self._module()
        if module is not None and module._compiled_call_impl is self:
            module._compiled_call_impl = None

    @property
    def module(self) -> torch.nn.Module:
        module = self._module()
        if module is None:
            raise RuntimeError("the denoiser is gone")
        return module

    def __deepcopy__(self, memo: object) -> None:
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())

    def plainly(self, args: Any, kwargs: Any) -> Any:
        self._report.called(compiled=False)
        return self.module._call_impl(*args, **kwargs)


class JustInTime(Place):
    """Compiled by torch at its first call, and again for every other way of calling it.

    `compiled` is what to call; `bring` fetches the bundle of a way, and says its name and whether there is one; `settled` is
    told of the name when something was compiled all the same.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        report: Report,
        compiled: Callable[..., Any] | None,
        bring: Callable[[Form | None], tuple[BundleName, bool]],
        settled: Callable[[BundleName], None],
    ) -> None:
        super().__init__(module, report)
        self._compiled, self._bring, self._settled = compiled, bring, settled
        self._reader = Reader(module)
        self._brought: dict[Form | None, tuple[BundleName, bool]] = {}
        self._is_given_up = False

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        from torch._dynamo.exc import TorchDynamoException

        if self._is_given_up:
            return self.plainly(args, kwargs)
        began = time.monotonic()
        name, is_bundled = self._bundle(args, kwargs)
        before = compiling.counters()
        try:
            result = (self._compiled or self.module._call_impl)(*args, **kwargs)
        except TorchDynamoException as error:
            self._give_up(f"torch cannot compile it here: {first_line(error)}")
            return self.plainly(args, kwargs)
        self._report.called(compiled=True)
        if (now := compiling.counters()) != before:
            reuse = now.since(before)
            self._report.took(time.monotonic() - began)
            self._report.compiled(reuse, is_bundled=is_bundled)
            if reuse.misses:
                self._settled(name)
        return result

    def _bundle(self, args: Any, kwargs: Any) -> tuple[BundleName, bool]:
        """Of this way of calling it, in inductor's directories by now if there is one."""
        form: Form | None = None
        with contextlib.suppress(Unfit):  # what cannot be described has a bundle of its own, with whatever came before
            form = self._reader.read(args, kwargs)[0]
        if form not in self._brought:
            self._brought[form] = self._bring(form)
        return self._brought[form]

    def _give_up(self, why: str) -> None:
        self._is_given_up = True
        for part in self.module.modules():
            if part is not self.module:
                part._compiled_call_impl = None
        self._report.fell_back(why)


class AheadOfTime(Place):
    """Runs packages. `look(form)` finds the one for a form or begins to make it; `discard` hears of one that does not load.

    `made_for` is the digest of the structure that packages are made for: their code looks at no stride and no dtype.
    """

    def __init__(
        self,
        module: torch.nn.Module,
        report: Report,
        look: Callable[[Form], Item],
        discard: Callable[[Item, str], None],
        *,
        made_for: str,
    ) -> None:
        super().__init__(module, report)
        self._look, self._discard, self._made_for = look, discard, made_for
        self._reader = Reader(module)
        self._packages: dict[Form, Package] = {}
        self._items: dict[Form, Item] = {}
        self._watch: structure.Watch | None = None

    def install(self) -> None:
        super().install()
        self._watch = structure.Watch(self.module)

    def leave(self) -> None:
        super().leave()
        self._watch = None
        self._packages.clear()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            form, tensors = self._fitting(args, kwargs)
            result = self._run(form, tensors)
        except Unfit as why:
            self._report.fell_back(f"drawn without a package: {why}")
        except HotshelfError as error:
            self._report.fell_back(f"drawn without a package: {error.message}")
        else:
            self._report.called(compiled=True)
            return result
        return self.plainly(args, kwargs)

    def _run(self, form: Form, tensors: list[torch.Tensor]) -> Any:
        import torch

        package = self._packages.get(form) or self._load(form)
        try:
            return package.run(tensors)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError as error:  # of the device or of the code: plain torch may do better
            del self._packages[form]
            self._discard(self._items[form], first_line(error))
            raise Unfit(f"it cannot run: {first_line(error)}") from error

    def _fitting(self, args: Any, kwargs: Any) -> tuple[Form, list[torch.Tensor]]:
        """Raises Unfit."""
        import torch

        if self._watch is None or self._watch.is_changed():
            raise Unfit("the denoiser was changed after it was loaded")
        form, tensors = self._reader.read(args, kwargs)
        if torch.is_grad_enabled() and any(one.requires_grad for one in (*tensors, *self.module.parameters())):
            raise Unfit("gradients are wanted: draw under torch.no_grad()")
        if torch.is_autocast_enabled(tensors[0].device.type if tensors else "cpu"):
            raise Unfit("autocast is on")
        return form, tensors

    def _load(self, form: Form) -> Package:
        """Raises Unfit as long as there is none."""
        began = time.monotonic()
        if structure.digest(structure.lines(self.module)) != self._made_for:
            raise Unfit("the denoiser was changed after it was loaded")
        item = self._found(form)
        try:
            if item.state is not State.READY or item.folder is None:
                raise Unfit(item.why or f"there is none yet for {shapes_of(form)}: {item.state.value}")
            package = self._packages[form] = Package(item.folder / MODEL, self.module)
        except HotshelfError as error:
            self._discard(item, error.message)
            raise
        finally:
            self._report.took(time.monotonic() - began)
        self._report.served(item.source)
        return package

    def _found(self, form: Form) -> Item:
        known = self._items.get(form)
        if known is not None and known.state is not State.ABSENT:
            return known
        if known is None and len(self._items) >= MOST_KINDS:
            raise Unfit(f"it was called in more than {MOST_KINDS} ways")
        item = self._items[form] = self._look(form)
        if known is None:
            self._report.looked(item, is_hit=item.state is State.READY)
        return item
