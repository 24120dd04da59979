"""The one frozen settings object: every key, its unit, its default. Nothing else has defaults."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationInfo, field_validator

from hotshelf_daemon.config.gcs import GcsSettings, plain_address
from hotshelf_daemon.config.hub import HubMirrorSettings, HubSettings
from hotshelf_daemon.config.models import ModelSettings, cached_models
from hotshelf_daemon.config.values import Bytes, Percent, Seconds, Verify
from hotshelf_shared import memory
from hotshelf_shared.errors import BadConfiguration, HotshelfError
from hotshelf_shared.source import Source
from hotshelf_shared.truss import ModelCache

SOCKET_PATH_MAX_BYTES = 107


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)


class IndexSettings(Frozen):
    #: Where the index lies; None is STORE/index/index.db. Put it on a local disk when the store is on a network.
    path: str | None = None


class OriginSettings(Frozen):
    """One S3-compatible service. Credentials: these, else B2_* when the endpoint is B2's, else the usual AWS chain."""

    endpoint_url: str | None = Field(default=None, pattern=r"^https?://")
    region: str | None = None
    buckets: list[str] = []
    addressing_style: Literal["auto", "path", "virtual"] = "auto"
    unsigned: bool = False
    #: Asked first, in this order and unsigned, for what bears its digest in its name: http(s)://HOST[/PATH], below which lie
    #: BUCKET/KEY or KEY, or an address with {key} in it, and {bucket}.
    mirrors: list[str] = Field(default=[], max_length=8)
    #: A path to a CA bundle, when the mirrors' certificates are your own.
    mirrors_ca_bundle: str | None = None
    access_key_id: str | None = None
    access_key_id_file: str | None = None
    secret_access_key: SecretStr | None = None
    secret_access_key_file: str | None = None
    session_token: SecretStr | None = None
    session_token_file: str | None = None
    #: A path to these three and the region in one, as Truss's `s3_credentials.json` has them; instead of the others.
    credentials_file: str | None = None
    #: Requests to this origin under way at once that somebody waits for; what is preloaded may have a quarter as many beside.
    max_connections: int = Field(default=16, ge=1, le=256)
    #: A path to a CA bundle, when the endpoint's certificate is your own.
    ca_bundle: str | None = None
    #: `required`: nothing from here is served that no key of `keys` has signed (`hotshelf push --sign`).
    verify: Verify = "off"
    #: Paths of public keys in PEM; each may vouch for everything from here. Two while one takes the other's place.
    keys: list[str] = Field(default=[], max_length=16, validate_default=True)

    @field_validator("mirrors")
    @classmethod
    def _are_addresses(cls, value: list[str]) -> list[str]:
        for url in value:
            filled = url.replace("{bucket}", "b").replace("{key}", "k")
            if not re.fullmatch(r"https?://[^/?#{}]+(/[^?#{}]*)?", filled) or ("{bucket}" in url and "{key}" not in url):
                raise ValueError("must be http(s)://HOST[/PATH], or such an address with {key}, and {bucket}, in it")
        return value

    @field_validator("endpoint_url", "mirrors")
    @classmethod
    def _holds_no_credentials(cls, value: Any) -> Any:
        for url in value if isinstance(value, list) else (value or "",):
            plain_address(url, "put them into access_key_id and secret_access_key")
        return value

    @field_validator("keys")
    @classmethod
    def _are_there_to_verify_with(cls, value: list[str], info: ValidationInfo) -> list[str]:
        if info.data.get("verify") == "required" and not value:
            raise ValueError("must name a public key: `verify` is required")
        return value

    def secrets(self) -> frozenset[str]:
        held = (self.secret_access_key, self.session_token)
        return frozenset(s.get_secret_value() for s in held if s is not None and s.get_secret_value())


class SafetySettings(Frozen):
    allow_pickle: bool = False
    allow_code: bool = False
    #: Libraries that a model_index.json may name besides diffusers' and transformers' own.
    allow_libraries: list[str] = []


class BundleSettings(Frozen):
    #: What bundles are signed with, 32 bytes or more; None makes one for this store. Only the daemon may read it.
    key_file: str | None = None
    #: Bytes of one bundle's archive.
    max_size: Bytes = 4 << 30


class PublishSettings(Frozen):
    """`s3://BUCKET/PREFIX` through which nodes share what trusted workers built; None keeps it on this shelf."""

    pipelines: str | None = None
    bundles: str | None = None

    @field_validator("pipelines", "bundles")
    @classmethod
    def _is_a_folder_of_a_bucket(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                source = Source.parse(value)
            except HotshelfError as error:
                raise ValueError(error.message) from error
            if source.kind != "s3" or source.pinned:
                raise ValueError("must be s3://BUCKET/PREFIX")
        return value

    def of(self, kind: str) -> Source | None:
        """Where `pipeline`s or `bundle`s are shared."""
        prefix = {"pipeline": self.pipelines, "bundle": self.bundles}[kind]
        return None if prefix is None else Source.parse(prefix)


class PrefetchSettings(Frozen):
    enabled: bool = True
    max_rate: Bytes = 200 << 20


class FetchSettings(Frozen):
    """How bytes come in. The defaults were measured (ARCHITECTURE.md); change them when your origin differs."""

    #: Bytes of one ranged GET; what a crash costs at the most is this times the requests under way.
    segment_bytes: Bytes = 16 << 20
    #: Ranged GETs that somebody waits for under way at once, over all files and origins, at the most.
    connections: int = Field(default=16, ge=1, le=128)
    connect_timeout_s: Seconds = 5
    #: A connection that brings nothing for this long is dropped and tried again.
    idle_timeout_s: Seconds = 20
    #: Bytes a second that a connection must bring, over each `idle_timeout_s`, or it is dropped and tried again.
    floor_rate: Bytes = 1_024
    attempts: int = Field(default=5, ge=1, le=20)
    #: Whether what is fetched stays in the page cache. `auto`: when all of it fits; else it would only drive out the rest.
    page_cache: Literal["auto", "keep", "drop"] = "auto"

    def keeps_pages(self, size: int) -> bool:
        """Of a set of `size` bytes that is about to be fetched."""
        return size <= memory.room(0) if self.page_cache == "auto" else self.page_cache == "keep"


class Settings(Frozen):
    """hotshelfd's whole configuration."""

    store: str = "/shelf"
    socket: str = "/run/hotshelf/hotshelf.sock"
    socket_mode: str = Field(default="0660", pattern=r"^0?[0-7]{3}$")
    socket_group: str | None = None
    #: Uids and gids let in; None is the daemon's own uid and the socket's group.
    socket_uids: list[int] | None = None
    socket_gids: list[int] | None = None
    #: Uids that may evict, unpin, roll back, collect and verify; None is the daemon's own uid and root.
    admin_uids: list[int] | None = None
    #: Uids that are served every built pipeline, and whose own are served to everybody; anybody else has only its own.
    trusted_uids: list[int] = []
    #: HOST:PORT of /livez, /readyz and /metrics; empty switches it off.
    listen: str = "127.0.0.1:9464"
    #: HOST:PORT of the Hugging Face mirror, when `hub_mirror` has a token; names that it goes by besides its own and localhost.
    page_listen: str = "127.0.0.1:9465"
    page_hosts: list[str] = []
    #: Bytes the shelf may use; a percentage is of the file system, less `reserve`.
    budget: Percent | Bytes = "90%"
    #: Free bytes left to others on the file system when `budget` is a percentage.
    reserve: Percent | Bytes = "2%"
    revalidate_s: Seconds = 60
    lease_ttl_s: Seconds = 60
    #: What a lease has left once the connection that renewed it is gone.
    lease_eof_s: Seconds = 5
    lease_hold_max_s: Seconds = 86_400
    drain_s: Seconds = 10
    #: Ends the daemon this long after its last connection (embedded mode); None keeps it running.
    idle_exit_s: Seconds | None = None
    #: An interrupted download that nobody resumes is dropped after this.
    ingest_keep_s: Seconds = 86_400
    max_connections: int = Field(default=1_024, ge=1)
    #: A blob that a worker handed in waits this long to be bound; asking for it starts the time anew.
    handin_keep_s: Seconds = 900
    #: A worker that hands in and brings nothing for this long is given up.
    handin_idle_s: Seconds = 60
    #: Blobs being handed in at once, of everybody and of one uid.
    max_handins: int = Field(default=16, ge=1, le=256)
    max_handins_per_uid: int = Field(default=8, ge=1, le=256)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    index: IndexSettings = IndexSettings()
    origins: dict[str, OriginSettings] = {}
    gcs: GcsSettings = GcsSettings()
    #: The bucket in which a bare name that is not configured is a key or folder (B2_BUCKET).
    default_bucket: str | None = None
    models: dict[str, ModelSettings] = {}
    loras: dict[str, ModelSettings] = {}
    #: Truss's list, verbatim: what it names is preloaded, pinned, and shows where Truss puts it. `hf_cache` is its old name.
    model_cache: list[dict[str, Any]] = []
    #: Folders that `file://` may name, and hosts (with :PORT unless it is 443) that `https://` may, besides the origins'.
    roots: list[str] = []
    hosts: list[Annotated[str, Field(pattern=r"^[A-Za-z0-9.-]+(:\d{1,5})?$")]] = []
    safety: SafetySettings = SafetySettings()
    bundles: BundleSettings = BundleSettings()
    publish: PublishSettings = PublishSettings()
    prefetch: PrefetchSettings = PrefetchSettings()
    fetch: FetchSettings = FetchSettings()
    hf: HubSettings = HubSettings()
    hub_mirror: HubMirrorSettings = HubMirrorSettings()

    @field_validator("publish")
    @classmethod
    def _can_be_verified_elsewhere(cls, value: PublishSettings, info: ValidationInfo) -> PublishSettings:
        bundles = info.data.get("bundles")
        if value.bundles is not None and bundles is not None and bundles.key_file is None:
            raise BadConfiguration(
                "publish.bundles is set and bundles.key_file is not: a key made for one store lets no other node verify",
                hint="Give all these nodes one key (openssl rand -hex 32), and name its file in bundles.key_file.",
            )
        return value

    @field_validator("store", "socket")
    @classmethod
    def _is_absolute(cls, value: str) -> str:
        if not value.startswith("/"):
            raise ValueError("must be an absolute path")
        return value.rstrip("/") or "/"

    @field_validator("socket")
    @classmethod
    def _fits_a_socket(cls, value: str) -> str:
        if len(value.encode()) > SOCKET_PATH_MAX_BYTES:
            raise ValueError(f"is {len(value.encode())} bytes; a Unix socket's path has {SOCKET_PATH_MAX_BYTES} at the most")
        return value

    @field_validator("model_cache")
    @classmethod
    def _is_what_truss_has(cls, value: list[dict[str, Any]]) -> list[dict[str, Any]]:
        try:
            ModelCache.parse(value)
        except BadConfiguration as error:
            raise ValueError(error.message) from error
        return value

    @field_validator("listen", "page_listen")
    @classmethod
    def _is_an_address(cls, value: str) -> str:
        if value and not re.fullmatch(r"(\[[0-9a-fA-F:]+\]|[A-Za-z0-9.-]*):\d{1,5}", value):
            raise ValueError("must be HOST:PORT, or empty")
        return value

    @property
    def index_path(self) -> str:
        return self.index.path or f"{self.store}/index/index.db"

    @property
    def names(self) -> dict[str, ModelSettings]:
        """Every bare name: a model wins over a LoRA of the same name, and both over what `model_cache` names."""
        return {**cached_models(self.cached), **self.loras, **self.models}

    @cached_property
    def cached(self) -> ModelCache:
        return ModelCache.parse(self.model_cache)

    def connections_of(self, label: str) -> int:
        """Requests to this origin under way at once, at the most."""
        if (origin := self.origins.get(label)) is None and label == "gcs":
            return self.gcs.max_connections
        return OriginSettings().max_connections if origin is None else origin.max_connections

    def hasty(self) -> Settings:
        """The same, for origins whose answer nobody can wait for."""
        fetch = self.fetch.model_copy(update={"connect_timeout_s": 1.0, "idle_timeout_s": 2.0, "attempts": 1})
        return self.model_copy(update={"fetch": fetch})

    def secrets(self) -> frozenset[str]:
        """Every secret value, for the log's redaction."""
        return (self.hf.secrets() | self.hub_mirror.secrets()).union(*(origin.secrets() for origin in self.origins.values()))
