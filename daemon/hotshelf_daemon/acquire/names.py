"""From what a caller writes to what it stands for: configured names, the seed bucket's names, and the wish's identity."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, replace
from functools import cached_property

from hotshelf_daemon.config import Settings
from hotshelf_daemon.index.snapshots import RefRow
from hotshelf_daemon.policy import Policy
from hotshelf_shared.bundle import BundleName
from hotshelf_shared.errors import InvalidRequest, NotFound
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import KEYED, Source
from hotshelf_shared.wire import Wish, nearest

#: Kinds of sources that the hub has no name for.
_SHOWN = ("s3", "gs", "https", "file")
#: Names that can be one link below names/, with room for what others add to a file's name. One with a slash would need a
#: folder, which another name may be.
_WORD = re.compile(r"[^/.][^/]*\Z")
_LONGEST_BYTES = 200


@dataclass(frozen=True)
class Want:
    """A wish made definite: `source` is no bare name, the policy is decided. Equal wants share everything."""

    source: Source
    patterns: Patterns
    policy: Policy
    frozen: bool = False

    @cached_property
    def key(self) -> str:
        """Its digest: the identity of the ref, and of the flight."""
        allow = self.patterns.allow
        body = [str(self.source), None if allow is None else [*allow], [*self.patterns.ignore], str(self.policy)]
        return hashlib.sha256(json.dumps(body).encode()).hexdigest()


class Names:
    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._known: dict[Wish, Want] = {}

    def want(self, wish: Wish) -> Want:
        """Raises NotFound, with the nearest known name, when a bare name stands for nothing."""
        if (known := self._known.get(wish)) is None:
            known = self._interpret(wish)
            if len(self._known) >= 10_000:
                self._known.clear()
            self._known[wish] = known
        return known

    def _interpret(self, wish: Wish) -> Want:
        source, patterns, frozen = wish.source, wish.patterns, False
        if source.kind == "name":
            source, patterns, frozen = self._configured(source, patterns)
        if source.kind in KEYED:
            return self._keyed(source, patterns)
        want = Want(source, patterns, Policy.of(self._settings, source), frozen or source.is_fixed)
        return want if want.frozen or want.key not in self._frozen_keys else replace(want, frozen=True)

    def _keyed(self, source: Source, patterns: Patterns) -> Want:
        """One built thing under its key: leased whole, never another tomorrow, never a pickle."""
        if patterns:
            raise InvalidRequest(f"{source} is leased whole", hint="Leave allow_patterns and ignore_patterns out.")
        if source.kind == "bundle":
            BundleName.parse(source.path)
            return Want(source, patterns, Policy(), frozen=True)
        return Want(source, patterns, Policy.of(self._settings, source.unpinned), frozen=True)

    @cached_property
    def _frozen_keys(self) -> frozenset[str]:
        """Wants that a frozen name stands for: asked for by their source they share its ref, which must not flip either."""
        wishes = [Wish(Source.parse(name)) for name, model in self._settings.names.items() if model.freeze]
        wants = [Want(*self._configured(wish.source, wish.patterns)[:2], Policy()) for wish in wishes]
        return frozenset(replace(want, policy=Policy.of(self._settings, want.source)).key for want in wants)

    def of_ref(self, ref: RefRow) -> Want | None:
        """The want that a ref was made for; None when another policy applied to it then."""
        source = Source.parse(ref.source)
        want = Want(source, Patterns(ref.allow, ref.ignore), Policy.of(self._settings, source))
        frozen = source.pinned is not None or source.kind in KEYED or ref.wish in self._frozen_keys
        return replace(want, frozen=frozen) if want.key == ref.wish else None

    def unpinned(self, want: Want) -> Want | None:
        """The want whose ref may stand for a pinned revision too; None for one that is not pinned."""
        if want.source.pinned is None:
            return None
        source = want.source.unpinned
        return Want(source, want.patterns, Policy.of(self._settings, source))

    def _configured(self, name: Source, patterns: Patterns) -> tuple[Source, Patterns, bool]:
        model = self._settings.names.get(name.path)
        if model is not None:
            meant = model.wish
            source = replace(meant.source, pinned=name.pinned) if name.pinned else meant.source
            return source, patterns or meant.patterns, model.freeze
        if bucket := self._settings.default_bucket:
            return Source("s3", bucket, name.path, name.pinned), patterns, False
        raise NotFound(
            f"no model or LoRA is called {name.path!r}",
            hint=nearest(name.path, self._settings.names) if self._settings.names else "Configure it under `models:`.",
        )

    def shown(self) -> dict[str, tuple[str, ...]]:
        """Wishes, by key, that have a place of their own below hub/, with the names they have there."""
        found: dict[str, tuple[str, ...]] = {}
        for name, want in self.configured().items():
            if want.source.kind in _SHOWN:
                found[want.key] = (*found.get(want.key, ()), name)
        return found

    def places(self) -> dict[str, tuple[str, ...]]:
        """Wishes, by key, and the places on the shelf that are always what they stand for: `names/models/NAME` or
        `names/loras/NAME`; for what only Truss's list names, the folders below model_cache/ that Truss would have filled."""
        found: dict[str, tuple[str, ...]] = {}
        for name, want in self.configured().items():
            if want.source.kind in (*_SHOWN, "hf"):
                found[want.key] = (*found.get(want.key, ()), *self._places_of(name))
        return {key: places for key, places in found.items() if places}

    def _places_of(self, name: str) -> tuple[str, ...]:
        """A model wins over a LoRA of the same name, and both over Truss's entry."""
        for kind, names in (("models", self._settings.models), ("loras", self._settings.loras)):
            if name in names:
                is_short = len(name.encode()) <= _LONGEST_BYTES
                return (f"names/{kind}/{name}",) if _WORD.match(name) and is_short else ()
        entries = self._settings.cached.entries
        return tuple(f"model_cache/{one.folder}" for one in entries if one.name == name and one.folder is not None)

    def configured(self) -> dict[str, Want]:
        """Every configured name that has an origin in this version."""
        return {name: self.want(Wish(Source.parse(name))) for name in self._settings.names}
