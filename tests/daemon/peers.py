"""Requests made by somebody else: a process of another uid and other groups asks, and says what it was answered."""

from __future__ import annotations

import json
import pathlib
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

from tests.daemon_process import Reply

_ASK = """
import http.client, json, os, socket, sys
path, uid, gid, groups, requests = json.load(sys.stdin)
os.setgroups(groups); os.setgid(gid); os.setuid(uid)

class Connection(http.client.HTTPConnection):
    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(30)
        self.sock.connect(path)

told = []
for method, target, body in requests:
    connection = Connection("localhost")
    try:
        data = None if body is None else body.encode("latin-1") if isinstance(body, str) else json.dumps(body)
        connection.request(method, target, data, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        text = answer.read().decode()
        told.append([answer.status, json.loads(text) if text else None, {k.lower(): v for k, v in answer.getheaders()}])
    except OSError as error:
        told.append([0, type(error).__name__, {}])
    finally:
        connection.close()
print(json.dumps(told))
"""
#: A body that is text goes as it is, a byte for each character (`bytes.decode("latin-1")`).
Request = tuple[str, str, Any]


class Somebody:
    """`Somebody(socket, uid=…, gid=…).ask(("GET", "/v1/status", None))`. Needs root to become somebody."""

    def __init__(self, socket: pathlib.Path, *, uid: int, gid: int, groups: Sequence[int] = ()) -> None:
        self.socket, self.uid, self.gid, self.groups = socket, uid, gid, list(groups)

    def ask_all(self, *requests: Request) -> list[Reply]:
        """Status 0 and an exception's name where it did not even get through."""
        order = json.dumps([str(self.socket), self.uid, self.gid, self.groups, requests])
        argv = [sys.executable, "-c", _ASK]
        done = subprocess.run(argv, input=order, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return [Reply(*told) for told in json.loads(done.stdout)]

    def ask(self, method: str, target: str, body: Any = None) -> Reply:
        return self.ask_all((method, target, body))[0]
