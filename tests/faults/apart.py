"""What needs a network of its own, run as `unshare --net python -m tests.faults.apart loss|link-local FOLDER`. Prints JSON."""

from __future__ import annotations

import json
import pathlib
import socket
import subprocess
import sys
import threading
from typing import Any

from hotshelf_daemon.config import OriginSettings, Settings
from hotshelf_daemon.origin import gcs
from hotshelf_daemon.origin.s3 import S3Origin, client_for
from hotshelf_shared.errors import HotshelfError
from tests import objects
from tests.daemon_process import Daemon
from tests.faults.scripted_origin import ScriptedOrigin

METADATA = "169.254.169.254"


def run(*argv: str) -> None:
    subprocess.run(argv, check=True, capture_output=True)


def loss(folder: pathlib.Path) -> dict[str, Any]:
    """A cold acquire over a link that loses every tenth packet."""
    run("nft", "add table inet t; add chain inet t in { type filter hook input priority 0; }")
    tree = objects.model("loss", unet=2 << 20)
    with ScriptedOrigin() as origin:
        origin.objects |= {f"m/{path}": data for path, data in tree.items()}
        account = {"endpoint_url": origin.endpoint_url, "addressing_style": "path", "unsigned": True, "region": "x"}
        with Daemon(folder / "daemon", origins={"lossy": account}, listen="") as daemon:
            run("nft", f"add rule inet t in tcp dport {origin.port} numgen random mod 10 == 0 counter drop")
            run("nft", f"add rule inet t in tcp sport {origin.port} numgen random mod 10 == 0 counter drop")
            reply = daemon.acquire("s3://weights/m", timeout_s=100)
            right = reply.status == 200 and objects.read(daemon.store / reply.body["path"]) == tree
        rules = subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True, text=True).stdout
        return {"status": reply.status, "right": right, "dropped": rules.count("packets") - rules.count("packets 0")}


def link_local(_folder: pathlib.Path) -> dict[str, Any]:
    """A name that leads to where a cloud keeps its secrets, with somebody listening there."""
    run("ip", "addr", "add", f"{METADATA}/32", "dev", "lo")
    heard: list[bytes] = []
    with socket.create_server((METADATA, 80)) as listener:
        threading.Thread(target=lambda: heard.append(listener.accept()[0].recv(100)), daemon=True).start()
        genuine = socket.getaddrinfo

        def lead_astray(host: str, port: int, *more: Any, **others: Any) -> Any:
            return genuine(METADATA if host == "innocent.example" else host, port, *more, **others)

        socket.getaddrinfo = lead_astray  # type: ignore[assignment]
        told = []
        for host in ("innocent.example", METADATA):
            account = OriginSettings.model_validate({"endpoint_url": f"http://{host}", "unsigned": True, "region": "x"})
            try:
                S3Origin(client_for(account, Settings()), "weights", "there").head("latest/meta-data")
            except HotshelfError as error:
                told.append([error.code, error.retryable, error.message])
            google = Settings.model_validate({"gcs": {"endpoint_url": f"http://{host}", "unsigned": True}})
            try:
                gcs.origin_of("weights", google).head("latest/meta-data")
            except HotshelfError as error:
                told.append([error.code, error.retryable, error.message])
        return {"heard": [data.decode() for data in heard], "told": told}


def main() -> None:
    run("ip", "link", "set", "lo", "up")
    work = {"loss": loss, "link-local": link_local}[sys.argv[1]]
    print(json.dumps(work(pathlib.Path(sys.argv[2]))))


if __name__ == "__main__":
    main()
