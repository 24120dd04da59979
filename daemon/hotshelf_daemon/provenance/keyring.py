"""Whose signature an origin's files need: the configuration's `verify` and `keys`, read once at start.

Only what comes out of a bucket is signed. Local roots are the operator's own, and what was built is vouched for by its
builder; so what other nodes published cannot be believed where signatures are required, and that is refused at start.
"""

from __future__ import annotations

from collections.abc import Mapping

from hotshelf_daemon.config import Settings
from hotshelf_daemon.origin import gcs, https, s3
from hotshelf_daemon.provenance.keys import PublicKey
from hotshelf_shared.errors import BadConfiguration
from hotshelf_shared.source import KEYED, Source


class Keyring:
    def __init__(self, settings: Settings, keys: Mapping[str, tuple[PublicKey, ...]]) -> None:
        """`keys` by the origin's name in the configuration, of origins that require a signature."""
        self._settings = settings
        self._keys = keys

    @classmethod
    def of(cls, settings: Settings) -> Keyring:
        """Raises BadConfiguration naming the setting."""
        ring = cls(
            settings,
            {
                name: tuple(PublicKey.load(path, f"origins.{name}.keys") for path in origin.keys)
                for name, origin in settings.origins.items()
                if origin.verify == "required"
            },
        )
        for kind in KEYED:
            if (prefix := settings.publish.of(kind)) is not None and ring.required(prefix):
                raise BadConfiguration(
                    f"publish.{kind}s is {prefix}, whose origin requires signatures, and nodes publish without one of its keys",
                    hint="Publish to a bucket of another origin (it may have the same endpoint), or switch `verify` off.",
                )
        return ring

    def required(self, source: Source) -> tuple[PublicKey, ...]:
        """The keys, any of which must vouch for what comes from there; none when nothing is required."""
        if not self._keys or source.kind != "s3":
            return ()
        name, origin = s3.bucket(self._settings, source.authority)
        return self._keys[name] if origin.verify == "required" else ()

    def accepts(self, source: Source, signed_by: str | None) -> bool:
        """Whether what is held of a source, verified by that key if by any, may still be served."""
        if source.kind == "https" and https.needs_signatures(source.authority, self._settings):
            return False  # held from before they were: asked for by that name it is no way past them
        if source.kind == "gs" and gcs.needs_signatures(self._settings):
            return False
        keys = self.required(source)
        return not keys or any(key.id == signed_by for key in keys)
