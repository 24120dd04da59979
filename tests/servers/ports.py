"""Free loopback ports for servers that cannot be told "any".

They come from below the range that the kernel hands to outgoing connections, so a port stays free while its server is
stopped and started again.
"""

from __future__ import annotations

import os
import random
import socket

_RANGE = range(20_000, 32_000)
_chooser = random.Random(os.getpid() ^ random.SystemRandom().getrandbits(32))


def free_ports(count: int) -> list[int]:
    """`count` distinct TCP ports on 127.0.0.1 that nothing listens on."""
    held: list[socket.socket] = []
    try:
        for port in _chooser.sample(_RANGE, len(_RANGE)):
            sock = socket.socket()
            held.append(sock)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                held.pop().close()
            if len(held) == count:
                return [sock.getsockname()[1] for sock in held]
        raise RuntimeError(f"no {count} free ports in {_RANGE}")
    finally:
        for sock in held:
            sock.close()
