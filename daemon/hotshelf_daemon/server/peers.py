"""Who is at the other end of the socket, asked of the kernel once per connection, and what they may do."""

from __future__ import annotations

import asyncio
import ctypes
import errno
import os
import socket
import struct
from dataclasses import replace
from weakref import WeakKeyDictionary

from hotshelf_daemon.acquire import Peer
from hotshelf_daemon.config import Settings
from hotshelf_shared.errors import AccessDenied

_SO_PEERGROUPS = 59
_MOST_GROUPS = 65_536
_libc = ctypes.CDLL(None, use_errno=True)


class Guard:
    """Peers are let in by uid, or by a group (a pod's fsGroup is a supplementary one)."""

    def __init__(self, settings: Settings, socket_gid: int) -> None:
        own = os.geteuid()
        self._admins = frozenset({own, 0} if settings.admin_uids is None else settings.admin_uids)
        self._uids = frozenset({own} if settings.socket_uids is None else settings.socket_uids) | self._admins
        self._gids = frozenset({socket_gid} if settings.socket_gids is None else settings.socket_gids)
        self._seen: WeakKeyDictionary[asyncio.BaseTransport, Peer] = WeakKeyDictionary()

    def admit(self, transport: asyncio.BaseTransport) -> Peer:
        """Raises AccessDenied for a uid that is neither listed nor in a listed group."""
        peer = self._seen.get(transport)
        if peer is None:
            found = peer_of(transport.get_extra_info("socket"))
            peer = self._seen[transport] = replace(found, is_admin=found.uid in self._admins)
        if peer.uid not in self._uids and not (peer.groups | {peer.gid}) & self._gids:
            raise AccessDenied(
                f"uid {peer.uid} may not use this socket",
                hint="Run it with the socket's group (fsGroup or supplementalGroups), or list it in `socket_uids`.",
            )
        return peer

    def check_admin(self, peer: Peer) -> None:
        if not peer.is_admin:
            raise AccessDenied(f"uid {peer.uid} may not do this", hint="Only `admin_uids` may; run it as the daemon's uid.")


def peer_of(connection: socket.socket) -> Peer:
    pid, uid, gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return Peer(uid, gid, pid, _groups(connection))


def _groups(connection: socket.socket) -> frozenset[int]:
    """By libc: Python's own getsockopt refuses buffers over 1,024 bytes, and a directory's users have many groups."""
    size = ctypes.c_uint32(256)
    while size.value <= 4 * _MOST_GROUPS:
        raw = ctypes.create_string_buffer(size.value)
        if _libc.getsockopt(connection.fileno(), socket.SOL_SOCKET, _SO_PEERGROUPS, raw, ctypes.byref(size)) == 0:
            return frozenset(struct.unpack(f"{size.value // 4}I", raw.raw[: size.value]))
        if ctypes.get_errno() != errno.ERANGE:
            break
        size.value = max(size.value, len(raw) * 8)
    return frozenset()
