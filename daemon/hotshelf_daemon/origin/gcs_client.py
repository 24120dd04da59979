"""One bucket of Google Cloud Storage through google-cloud-storage: objects and listings by its client, bytes over its session.

The only module that imports google's libraries, and itself imported when the first gs:// source is asked for: hotshelfd works
without them. Bytes past its downloader, which writes ranges into a file and cannot be read from. Nothing is retried here.
"""

from __future__ import annotations

import base64
import functools
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlencode

import google.auth
import requests
import urllib3.exceptions
from google.api_core.client_info import ClientInfo
from google.api_core.exceptions import GoogleAPICallError, from_http_response
from google.auth.credentials import AnonymousCredentials
from google.auth.exceptions import DefaultCredentialsError, GoogleAuthError, TransportError
from google.auth.transport.requests import AuthorizedSession, Request
from google.cloud import storage
from google.oauth2 import service_account
from requests.adapters import HTTPAdapter

from hotshelf_daemon import logs
from hotshelf_daemon.config import GcsSettings, Settings
from hotshelf_daemon.objects import Checksum, OriginObject
from hotshelf_daemon.origin import gcs_errors
from hotshelf_daemon.origin.gcs_errors import Refusal
from hotshelf_daemon.origin.gcs_key import ServiceAccountKey, stamp_of
from hotshelf_daemon.origin.guard import LinkLocal, guard_pools
from hotshelf_daemon.origin.s3_errors import first_line, hopeless
from hotshelf_daemon.origin.s3_get import answered
from hotshelf_shared import __version__
from hotshelf_shared.errors import AccessDenied, BadConfiguration, HotshelfError, IntegrityError, OriginUnavailable

LABEL = "gcs"
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)
_FIELDS = "items(name,size,generation,crc32c),nextPageToken"
_OPTIONS: Any = [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)]
#: Denied with what was found around here, it is looked for again no sooner than this: looking takes seconds.
LOOK_AGAIN_S = 30.0
_NONE_FOUND = "default credentials were not found"
#: Who waited for a token that was not to be had is not kept waiting for the next failure, seconds.
NO_TOKEN_S = 1.0
_AUTHORIZE = "Check the key, the clock of this machine and that the account is enabled."


class _Guarded(HTTPAdapter):  # type: ignore[misc] # requests is not looked into
    """Connections as S3's: none to a link-local address, and a proxy's own address is checked too."""

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, socket_options=_OPTIONS, **options)
        guard_pools(self.poolmanager)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        manager = super().proxy_manager_for(proxy, **options)
        guard_pools(manager)
        return manager


class _Session(AuthorizedSession):  # type: ignore[misc] # google's libraries are not looked into
    """Signs what it sends, and follows no redirect: a token goes nowhere else.

    Tokens come over a session of google's own, which is not guarded: the metadata service of Google's machines is link-local.
    Its address is google's, or one that the operator's environment or key names; no source that a worker writes leads there.
    """

    def __init__(self, credentials: Any, gcs: GcsSettings) -> None:
        super().__init__(credentials, refresh_status_codes=() if isinstance(credentials, AnonymousCredentials) else (401,))
        self.auth = lambda request: request  # what ~/.netrc has would take the token's place
        self.verify = gcs.ca_bundle or True
        for scheme in ("https://", "http://"):
            self.mount(scheme, _Guarded(pool_maxsize=gcs.max_connections + 4))

    def get_redirect_target(self, _response: Any) -> None:
        return None

    def merge_environment_settings(self, url: str, proxies: Any, stream: Any, _verify: Any, cert: Any) -> Any:
        """With our own bundle, where one is set: a session's gives way to REQUESTS_CA_BUNDLE, a request's does not."""
        return super().merge_environment_settings(url, proxies, stream, self.verify, cert)


class GcsClient:
    """Raises BadConfiguration for credentials that cannot be used, and takes seconds to find out that there are none."""

    def __init__(self, bucket: str, settings: Settings) -> None:
        gcs, fetch = settings.gcs, settings.fetch
        self._gcs = gcs
        self._key_stamp = stamp_of(gcs.service_account_file) if gcs.service_account_file else None
        self._credentials = _credentials(gcs)
        self._made_at = time.monotonic()
        self._timeout = (fetch.connect_timeout_s, fetch.idle_timeout_s)
        self._session = _Session(self._credentials, gcs)
        self._renewing = threading.Lock()
        self._no_token: tuple[float, Exception] | None = None
        with self._translated(f"gs://{bucket}"):
            universe = self._credentials.universe_domain
            self._endpoint = (gcs.endpoint_url or f"https://storage.{universe}").rstrip("/")
            client = storage.Client(
                project=None,
                credentials=self._credentials,
                _http=self._session,
                client_info=ClientInfo(user_agent=f"hotshelfd/{__version__}"),
                client_options={"api_endpoint": self._endpoint, "universe_domain": universe},
            )
        client._bucket_metadata_cache = None  # else threads of its own ask for the bucket's metadata, which nobody needs
        self._library = client
        self._bucket = client.bucket(bucket, user_project=gcs.project)

    def head(self, key: str) -> OriginObject | None:
        with self._asking(key) as where:
            blob = self._bucket.get_blob(key, timeout=self._timeout, retry=None)
            return None if blob is None else _object(blob, where)

    def page(self, below: str, token: str | None) -> tuple[list[OriginObject], str | None]:
        """Some objects whose keys begin so, and what to ask for the next ones with; None when there are no more."""
        with self._asking(below) as where:
            listing = self._library.list_blobs(
                self._bucket, prefix=below or None, page_token=token, fields=_FIELDS, timeout=self._timeout, retry=None
            )
            return [_object(blob, where) for blob in next(listing.pages, ())], listing.next_page_token

    def get(self, key: str, wanted: dict[str, str], generation: str = "") -> dict[str, Any]:
        """The answer to a GET with these headers, as S3's are told: its body is a stream. Of that generation, if it has one."""
        query = {"alt": "media", "generation": generation, "userProject": self._gcs.project or ""}
        asked = urlencode({name: value for name, value in query.items() if value})
        url = f"{self._endpoint}/download/storage/v1/b/{self._bucket.name}/o/{quote(key, safe='')}?{asked}"
        # As it is stored: what is stored compressed would be inflated on the way, and no range or checksum fits it.
        headers = {"User-Agent": f"hotshelfd/{__version__}", "Accept-Encoding": "identity", **wanted}
        with self._asking(key):
            response = self._session.get(url, headers=headers, stream=True, timeout=self._timeout)
            try:
                if response.status_code >= 300:
                    raise from_http_response(response)
                return answered(response)
            except BaseException:
                response.close()
                raise

    def may_know_better(self) -> bool:
        """Whether what it was denied with may be out of date: the key's file is another, or something may be found by now."""
        if self._gcs.service_account_file:
            return stamp_of(self._gcs.service_account_file) != self._key_stamp
        return not self._gcs.unsigned and time.monotonic() - self._made_at > LOOK_AGAIN_S

    @contextmanager
    def _asking(self, key: str) -> Iterator[str]:
        where = f"gs://{self._bucket.name}/{key}"
        with self._translated(where):
            self._renew()
            yield where

    def _renew(self) -> None:
        """One thread asks for a token, and the others wait for it."""
        with self._renewing:
            if self._credentials.valid:
                return
            if self._no_token is not None and time.monotonic() < self._no_token[0]:
                raise self._no_token[1]
            try:
                self._credentials.refresh(functools.partial(Request(), timeout=self._timeout))
            except Exception as error:
                self._no_token = time.monotonic() + NO_TOKEN_S, error
                raise

    @contextmanager
    def _translated(self, where: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, requests.ConnectionError | requests.Timeout):
                self._session.close()  # a kept connection that died silently seldom died alone
            if (ours := self.as_ours(error, where)) is None:
                raise
            raise ours from error

    def as_ours(self, error: Exception, where: str) -> HotshelfError | None:
        """What google's libraries or the connection raised, as ours; None when it is not theirs."""
        match error:
            case GoogleAPICallError():
                return gcs_errors.as_ours(_refusal(error), LABEL, self.principal, where)
            case GoogleAuthError():
                said = first_line(error.args[0] if error.args else error)  # the others may be whole answers
                if isinstance(error, TransportError) or error.retryable:
                    return OriginUnavailable(f"no token for {self.principal} can be had, for {where}: {said}")
                return AccessDenied(f"{self.principal} gets no token, for {where}: {said}", hint=_AUTHORIZE)
            case LinkLocal():
                hint = "Point gcs.endpoint_url at a service that is not link-local."
                return AccessDenied(f"{LABEL} is not asked for {where}: {error}", hint=hint)
            case requests.exceptions.SSLError():
                return hopeless(f"the certificate of {LABEL} is not accepted ({first_line(error)})", "Set gcs.ca_bundle.")
            case requests.exceptions.InvalidJSONError() | ValueError() | TypeError() | KeyError() | AttributeError():
                hint = "Check gcs.endpoint_url: something else may answer there, or stand in front of it."
                return IntegrityError(f"{LABEL} answers for {where} what is no answer of Cloud Storage", hint=hint)
            case urllib3.exceptions.HTTPError() | OSError():
                return OriginUnavailable(f"{LABEL} cannot be reached for {where}: {first_line(error)}")
        return None

    @property
    def principal(self) -> str:
        if isinstance(self._credentials, AnonymousCredentials):
            return gcs_errors.NOBODY
        return getattr(self._credentials, "service_account_email", None) or "whoever the default credentials are"


def _credentials(gcs: GcsSettings) -> Any:
    """The key's; else what google's libraries find around here (Application Default Credentials); else nobody's."""
    if gcs.unsigned:
        return AnonymousCredentials()
    if gcs.service_account_file:
        key = ServiceAccountKey.read(gcs.service_account_file)
        logs.keep_out(key.secrets())
        try:
            return service_account.Credentials.from_service_account_info(key.info, scopes=_SCOPES)
        except (ValueError, TypeError, GoogleAuthError):  # what they say may hold parts of the key
            what = f"gcs.service_account_file: {gcs.service_account_file} has a private_key that is none"
            raise BadConfiguration(what, hint="Mount the key's JSON as it was written.") from None
    try:
        return google.auth.default(scopes=_SCOPES)[0]
    except (GoogleAuthError, OSError, ValueError) as error:
        if isinstance(error, DefaultCredentialsError) and _NONE_FOUND in str(error):
            return AnonymousCredentials()
        raise BadConfiguration(
            f"the default credentials cannot be used: {first_line(error).partition(' Type is ')[0]}",
            hint="Correct GOOGLE_APPLICATION_CREDENTIALS, or set `gcs: {unsigned: true}` for public buckets.",
        ) from None


def _object(blob: Any, where: str) -> OriginObject:
    if blob.size is None or not blob.generation:
        raise IntegrityError(f"gcs tells no size or generation of {blob.name!r}, for {where}")
    return OriginObject(blob.name, blob.size, str(blob.generation), _crc32c(blob.crc32c))


def _crc32c(text: str | None) -> Checksum | None:
    try:
        data = base64.b64decode(text or "", validate=True)
    except ValueError:
        return None
    return Checksum.crc32c(int.from_bytes(data, "big")) if len(data) == 4 else None


def _refusal(error: Any) -> Refusal:
    headers = {} if error.response is None else {name.lower(): value for name, value in error.response.headers.items()}
    first = error.errors[0] if error.errors else {}
    reason = first.get("reason", "") if isinstance(first, dict) else ""
    return Refusal(int(error.code or 0), str(reason)[:100], str(error.message), headers)
