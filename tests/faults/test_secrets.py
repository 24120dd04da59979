"""A canary in every place where a secret can be configured is seen nowhere: no log, error, row, metric, file or argument."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable

from tests.daemon.looking import rows
from tests.daemon.test_index import VIEWS
from tests.daemon_process import Daemon
from tests.faults.origin_cases import refuse
from tests.faults.scripted_origin import ScriptedOrigin
from tests.faults.test_origin_cases import settings

CANARY = "canary-7f3a91"
PRESIGNED = f"X-Amz-Signature={CANARY}&X-Amz-Credential={CANARY}"


def test_no_secret_leaves_the_daemon(make_daemon: Callable[..., Daemon], tmp_path: pathlib.Path) -> None:
    token = tmp_path / "token"
    token.write_text(f"{CANARY}-token")
    with ScriptedOrigin() as origin:
        account = settings(origin.endpoint_url, secret_access_key=f"{CANARY}-secret", session_token_file=str(token))
        dead = settings("http://127.0.0.1:9", secret_access_key=f"{CANARY}-dead", buckets=["dead"])
        daemon = make_daemon(
            origins={"scripted": account, "dead": dead}, env={"HF_TOKEN": f"{CANARY}-hf"}, log_level="debug",
            fetch={"attempts": 1},
        )  # fmt: skip
        told = [daemon.acquire(f"s3://weights/m?{PRESIGNED}"), daemon.acquire(f"s3://user:{CANARY}@weights/m")]
        for status, code in ((403, "SignatureDoesNotMatch"), (400, "ExpiredToken"), (500, "InternalError"), (302, CANARY[:6])):
            for kind in ("HEAD", "GET", "LIST"):
                origin.misdeed(refuse(status, code, Location=f"http://127.0.0.1:9/?{PRESIGNED}"), on=kind)
            told.append(daemon.acquire("s3://weights/m"))
            origin.heal()
        told.append(daemon.acquire("s3://dead/m"))
        asked = json.dumps([[ask.headers.get("x-amz-security-token"), ask.query] for ask in origin.asked])
        told += [daemon.call("GET", f"/v1/{name}") for name in ("status", "health", "snapshots", "transfers", "pins")]
        seen = {
            "answers": json.dumps([[reply.body, dict(reply.headers)] for reply in told]),
            "metrics": daemon.get_http("/metrics").body,
            "index": json.dumps([rows(daemon, f"SELECT * FROM {view}") for view in VIEWS]),
            "arguments": pathlib.Path(f"/proc/{daemon.pid}/cmdline").read_bytes().decode(),
        }
        assert daemon.terminate() == 0
    assert f"{CANARY}-token" in asked, "the canary was never used: the test would prove nothing"
    seen["log"] = daemon.log_text
    seen["store"] = "".join(
        path.read_bytes().decode("latin-1") for path in daemon.store.rglob("*") if path.is_file() and not path.is_symlink()
    )
    for suffix in ("-token", "-secret", "-dead", "-hf"):
        assert [where for where, text in seen.items() if CANARY + suffix in text] == []
    assert CANARY not in seen["log"]
