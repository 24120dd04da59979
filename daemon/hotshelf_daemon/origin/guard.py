"""No connection to a link-local address, whatever a name resolves to: there lie the metadata services of clouds.

Looked at on the connected socket, before a byte is sent, so that no second look-up of the name can make a difference.
"""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

from botocore.awsrequest import AWSHTTPConnection, AWSHTTPConnectionPool, AWSHTTPSConnection, AWSHTTPSConnectionPool


class LinkLocal(Exception):
    """The name leads to a link-local address."""


def refuse_link_local(address: str) -> None:
    """Raises LinkLocal."""
    parsed = ipaddress.ip_address(address.partition("%")[0])
    mapped = getattr(parsed, "ipv4_mapped", None) or parsed
    if mapped.is_link_local:
        raise LinkLocal(f"it leads to the link-local address {mapped}")


def _checked(connected: socket.socket) -> socket.socket:
    try:
        refuse_link_local(connected.getpeername()[0])
    except BaseException:
        connected.close()
        raise
    return connected


class _Connection(AWSHTTPConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _SecureConnection(AWSHTTPSConnection):
    def _new_conn(self) -> socket.socket:
        return _checked(super()._new_conn())


class _Pool(AWSHTTPConnectionPool):
    ConnectionCls = _Connection


class _SecurePool(AWSHTTPSConnectionPool):
    ConnectionCls = _SecureConnection


def guarded(client: Any) -> Any:
    """The client, its connections checked from now on. A proxy's own address is checked too, by the same pools."""
    guard(client._endpoint.http_session)
    return client


def guard(session: Any) -> None:
    """botocore's own, of a client or alone."""
    session._pool_classes_by_scheme.update({"http": _Pool, "https": _SecurePool})


def guard_pools(manager: Any) -> None:
    """urllib3's own, of requests or alone: it shares its table of pools with all others, so it gets another."""
    manager.pool_classes_by_scheme = {"http": _Pool, "https": _SecurePool}
