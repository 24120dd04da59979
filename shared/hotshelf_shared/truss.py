"""Truss's `model_cache:` in our words: what it names, which files of it, and where Truss would put them.

Sources: Truss's page on caching weights; `ModelRepo` of `truss.base.truss_config`, 0.18. Pure: nothing is read or asked here.
Values of keys that we do not know are never repeated: one of them may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Self

from hotshelf_shared.errors import BadConfiguration, InvalidRequest
from hotshelf_shared.patterns import Patterns
from hotshelf_shared.source import Source

KEYS = (
    "repo_id",
    "revision",
    "allow_patterns",
    "ignore_patterns",
    "kind",
    "use_volume",
    "volume_folder",
    "runtime_secret_name",
)
#: Where the token of gated repositories is, by its name among the deployment's secrets.
TOKEN_SECRET = "hf_access_token"  # noqa: S105 - its name
_KINDS = {"hf": "hf", "gcs": "gs", "s3": "s3"}
_SCHEMES = {**_KINDS, "gs": "gs"}
_SECRET_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,200}\Z")
_MAX_PART_BYTES = 255


@dataclass(frozen=True, slots=True)
class Cached:
    """One thing that is cached, and what a worker calls it. `folder` is where it shows below model_cache/.

    None is for what lies in the cache of the Hugging Face libraries instead. `token_secret` names the secret to read it with.
    """

    name: str
    source: Source
    patterns: Patterns
    folder: str | None = None
    token_secret: str = TOKEN_SECRET


@dataclass(frozen=True, slots=True)
class ModelCache:
    """All entries, those of one repository merged; `given` is the list as it was, with the keys that are known."""

    entries: tuple[Cached, ...] = ()
    given: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    @classmethod
    def parse(cls, value: object) -> Self:
        """Raises BadConfiguration naming entry and key."""
        if value is None:
            return cls()
        if not isinstance(value, list):
            raise _refused("model_cache", "is no list", "Write it as in Truss: `model_cache:`, then `- repo_id: …` below it.")
        read = [_Entry.parse(body, f"model_cache[{number}]") for number, body in enumerate(value)]
        given = tuple({key: body[key] for key in KEYS if key in body} for body in value)
        return cls(_named(_merged(read)), given, tuple(warning for entry in read for warning in entry.warnings))

    @classmethod
    def of(cls, config: Mapping[str, object]) -> Self:
        """Of a whole configuration, Truss's or ours, by its name or by its old one, `hf_cache:`."""
        if "hf_cache" not in config:
            return cls.parse(config.get("model_cache"))
        if "model_cache" in config:
            found, said = cls.parse(config["model_cache"]), "`hf_cache:` is not read: `model_cache:` is given too"
        else:
            found, said = cls.parse(config["hf_cache"]), "`hf_cache:` is read as `model_cache:`, which is its name by now"
        return replace(found, warnings=(said, *found.warnings))


@dataclass(frozen=True, slots=True)
class _Entry:
    """One entry as it stands; `at` is its place in the list."""

    at: str
    source: Source
    patterns: Patterns
    folder: str | None
    token_secret: str
    warnings: tuple[str, ...]

    @classmethod
    def parse(cls, body: object, at: str) -> Self:
        if not isinstance(body, Mapping) or not all(isinstance(key, str) for key in body):
            raise _refused(at, "is no mapping", "Begin it with `- repo_id: …`.")
        warnings = [f"{at}: the unknown key {key[:80]!r} is left out" for key in body if key not in KEYS]
        source = _source(body, at)
        if source.kind != "hf" and _text(body, "revision", at) not in ("", "main"):
            warnings.append(
                f"{at}: `revision` is for the Hugging Face Hub; of a bucket the newest files are taken, as Truss does"
            )
        own = _text(body, "volume_folder", at)
        uses_volume = _flag(body, "use_volume", at)
        if uses_volume and not own:
            raise _refused(f"{at}.volume_folder", "is missing, and use_volume is true", "Name the folder below model_cache/.")
        if own and not uses_volume:
            warnings.append(f"{at}: `volume_folder` is for `use_volume: true`, and left out")
        secret = _text(body, "runtime_secret_name", at) or TOKEN_SECRET
        if not _SECRET_NAME.match(secret):
            raise _refused(f"{at}.runtime_secret_name", "is no name of a secret", "Give the name, not the secret itself.")
        return cls(
            at=at,
            source=source,
            patterns=_patterns(body, "" if uses_volume or source.kind == "hf" else source.path, at),
            folder=_folder(own, f"{at}.volume_folder") if uses_volume else _folder_of(source, at),
            token_secret=secret,
            warnings=tuple(warnings),
        )

    def joined(self, other: _Entry) -> _Entry:
        """Both in one: Truss puts them into one folder. Raises BadConfiguration when no patterns say what both do."""
        mine, theirs = self.patterns, other.patterns
        if mine.ignore != theirs.ignore:
            hint = "Give both the same ignore_patterns, or make one entry of them."
            raise _refused(f"{self.at} and {other.at}", f"are both of {self.source}, and ignore different files", hint)
        if mine.allow is None or theirs.allow is None:
            return replace(self, patterns=Patterns.parse(None, mine.ignore))
        return replace(self, patterns=Patterns.parse((*mine.allow, *theirs.allow), mine.ignore))


def _source(body: Mapping[str, object], at: str) -> Source:
    repo_id, kind = _text(body, "repo_id", at), _text(body, "kind", at) or "hf"
    if not repo_id:
        raise _refused(f"{at}.repo_id", "is missing", "Write ORG/NAME, s3://BUCKET/FOLDER or gs://BUCKET/FOLDER.")
    scheme, is_address, rest = repo_id.partition("://")
    if not is_address:
        scheme, rest = kind, repo_id
    if "azure" in (kind, scheme):
        raise _refused(at, "is kept at Azure, for which there is no origin here", "Copy it to S3, to GCS or to the Hub.")
    if kind not in _KINDS:
        raise _refused(f"{at}.kind", "is none that is known", f"Known: {', '.join(_KINDS)}.")
    if scheme not in _SCHEMES:
        raise _refused(f"{at}.repo_id", "begins with no scheme that is known", f"Known: {', '.join(_SCHEMES)}.")
    if kind not in ("hf", scheme) and _KINDS[kind] != _SCHEMES[scheme]:
        raise _refused(f"{at}.kind", f"is {kind}, and repo_id begins with {scheme}://", "Correct one of them.")
    rest = rest.rstrip("/")
    if _SCHEMES[scheme] == "hf":
        return _repository(rest, _text(body, "revision", at), at)
    try:
        return Source.parse(f"{_SCHEMES[scheme]}://{rest}")
    except InvalidRequest as error:
        raise _refused(f"{at}.repo_id", f"cannot be used: {error.message}", error.hint) from None


def _repository(repo_id: str, revision: str, at: str) -> Source:
    """On the Hub, `main` unless a revision says otherwise."""
    if repo_id.count("/") != 1 or "@" in repo_id:
        hint = "Write ORG/NAME, for example openai-community/gpt2, and what follows an @ as `revision`."
        raise _refused(f"{at}.repo_id", "is no repository of the Hub", hint)
    try:
        return Source.parse(f"hf://{repo_id}" + (f"@{revision}" if revision not in ("", "main") else ""))
    except InvalidRequest as error:
        raise _refused(at, f"cannot be used: {error.message}", error.hint) from None


def _patterns(body: Mapping[str, object], prefix: str, at: str) -> Patterns:
    """Truss holds them against whole keys, we against paths below `prefix`: what begins with that begins after it."""
    found: dict[str, list[str] | None] = {}
    for key in ("allow_patterns", "ignore_patterns"):
        value = body.get(key)
        if value is not None and not (isinstance(value, list) and all(isinstance(glob, str) for glob in value)):
            raise _refused(f"{at}.{key}", "is no list of globs", 'Write for example ["*.safetensors", "*.json"].')
        found[key] = None if value is None else [glob.removeprefix(f"{prefix}/") if prefix else glob for glob in value]
    if found["allow_patterns"] == []:
        raise _refused(f"{at}.allow_patterns", "is empty, so that nothing would be cached", "Leave it out for every file.")
    try:
        return Patterns.parse(found["allow_patterns"], found["ignore_patterns"])
    except InvalidRequest as error:
        raise _refused(at, f"cannot be used: {error.message}", error.hint) from None


def _folder_of(source: Source, at: str) -> str | None:
    """Truss's own: BUCKET/KEY for buckets."""
    return None if source.kind == "hf" else _folder(str(source.unpinned).partition("://")[2], f"{at}.repo_id")


def _folder(text: str, at: str) -> str:
    parts = text.split("/")
    if any(part in ("", ".", "..") or len(part.encode(errors="replace")) > _MAX_PART_BYTES for part in parts):
        raise _refused(at, "is no folder", "Write a relative path, each part of 255 bytes at the most.")
    if "\\" in text or not text.isprintable():
        raise _refused(at, "holds a backslash or a character that cannot be seen", "Folders hold neither.")
    return text


def _merged(entries: Iterable[_Entry]) -> list[_Entry]:
    """Raises BadConfiguration when two cannot both show where they are to."""
    found: dict[tuple[Source, str | None], _Entry] = {}
    for entry in entries:
        same = (entry.source, entry.folder)
        found[same] = found[same].joined(entry) if same in found else entry
    shown = sorted((f"{entry.folder}/", entry.at) for entry in found.values() if entry.folder is not None)
    for (above, one), (below, other) in pairwise(shown):
        if below.startswith(above):
            what = f"would both show at model_cache/{above}, or one within the other"
            raise _refused(f"{one} and {other}", what, "Make one entry of them, with patterns, or give one a `volume_folder`.")
    return list(found.values())


def _named(entries: Sequence[_Entry]) -> tuple[Cached, ...]:
    """Called what Truss calls them; what would share a name is called by its revision or its folder, if it has one."""
    choices = {entry.at: _choices(entry) for entry in entries}
    found: dict[str, str] = {}
    for entry in sorted(entries, key=lambda one: len(choices[one.at]) > 1):  # those without a choice first
        name = next((choice for choice in choices[entry.at] if choice not in found and _is_name(choice)), None)
        if name is None:
            what = f"would be called {choices[entry.at][0]!r}, as another entry is"
            raise _refused(entry.at, what, "Name one of them under `models:` instead.")
        found[name] = entry.at
    names = {at: name for name, at in found.items()}
    return tuple(Cached(names[one.at], one.source, one.patterns, one.folder, one.token_secret) for one in entries)


def _choices(entry: _Entry) -> list[str]:
    """Names that it may have, the best first."""
    plain = str(replace(entry.source, pinned=None, ref=None)).partition("://")[2]
    others = (f"{plain}@{entry.source.ref}" if entry.source.ref else plain, entry.folder or plain)
    return [*dict.fromkeys((plain, *others))]


def _is_name(text: str) -> bool:
    """Whether a worker that asks for it asks for a name."""
    try:
        return Source.parse(text) == Source("name", "", text)
    except InvalidRequest:
        return False


def _text(body: Mapping[str, object], key: str, at: str) -> str:
    """Empty when it is not there, or null."""
    value = body.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise _refused(f"{at}.{key}", "is no text", "Put it in quotes.")
    return value.strip()


def _flag(body: Mapping[str, object], key: str, at: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise _refused(f"{at}.{key}", "is neither true nor false", "Write true or false.")
    return bool(value)


def _refused(what: str, why: str, hint: str) -> BadConfiguration:
    return BadConfiguration(f"{what} {why}", hint=hint)
