"""From an origin to verified files, beside other clients in the same run.

    python -m tests.bench.fetch [--rounds N] [--workloads one,flux,loras,small] [--peers s5cmd,…] [--signed | --tls]

nginx is the fast unsigned origin, with `--tls` over TLS, and SeaweedFS (`--signed`) the real S3. Rounds are interleaved and
each begins with another contestant; the first round warms memory and page cache and is not counted. What is compared are
ratios within a round: the peer's time over ours, once as it is and once with a sha256 of its files, which is what it would
take to know what we know. Writes `tests/bench/results/fetch.json`, or `fetch-tls.json`, `fetch-signed.json`;
`python -m tests.bench.plot` draws it.
"""

from __future__ import annotations

import argparse
import contextlib
import pathlib
import shutil
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from tests.bench import ours, peers, results, workloads
from tests.bench.peers import PEERS, Took
from tests.bench.results import spread
from tests.servers.certificates import certify
from tests.servers.nginx import Nginx
from tests.servers.seaweedfs import SeaweedFS

OURS = "hotshelf"
#: What is smaller stays until the end: for minutes ext4 makes whoever creates files walk around those that were just removed.
KEPT_BYTES = 100 << 20


class Origin:
    """Where everybody fetches from, and with which credentials, or certificates to trust."""

    def __init__(self, endpoint_url: str, published: dict[str, workloads.Published], **access: str) -> None:
        self.endpoint_url, self.published, self.access = endpoint_url, published, access


@contextlib.contextmanager
def nginx(folder: pathlib.Path, names: list[str]) -> Iterator[Origin]:
    with Nginx(folder / "nginx") as server:
        yield Origin(server.endpoint_url, {name: workloads.publish(name, server.root) for name in names})


@contextlib.contextmanager
def nginx_tls(folder: pathlib.Path, names: list[str]) -> Iterator[Origin]:
    certificate = certify(folder / "pem")
    with Nginx(folder / "nginx", certificate=certificate) as server:
        published = {name: workloads.publish(name, server.root) for name in names}
        yield Origin(server.endpoint_url, published, ca_bundle=str(certificate))


@contextlib.contextmanager
def seaweedfs(folder: pathlib.Path, names: list[str]) -> Iterator[Origin]:
    with SeaweedFS(folder / "weed") as server, server.client() as client:
        client.create_bucket(Bucket=workloads.BUCKET)
        made = {name: workloads.publish(name, folder / "made") for name in names}
        root = folder / "made" / workloads.BUCKET
        for path in (path for path in sorted(root.rglob("*")) if path.is_file()):
            client.upload_file(str(path), workloads.BUCKET, str(path.relative_to(root)))
            path.unlink()
        yield Origin(server.endpoint_url, made, key_id=server.access_key_id, secret=server.secret_access_key)


ORIGINS = {None: nginx, "tls": nginx_tls, "signed": seaweedfs}


def run_round(folder: pathlib.Path, origin: Origin, name: str, contestants: list[str]) -> dict[str, Took]:
    published, taken = origin.published[name], {}
    for contestant in contestants:
        into = pathlib.Path(tempfile.mkdtemp(dir=folder)) / contestant
        if contestant == OURS:
            taken[contestant] = ours.measure(into, origin.endpoint_url, published.source, **origin.access)
        else:
            job = peers.Job(origin.endpoint_url, workloads.BUCKET, [*published.sizes], str(into),
                            sizes=dict(published.sizes), **origin.access)  # fmt: skip
            if (took := peers.measure(contestant, job)) is not None:
                taken[contestant] = took
        if published.bytes > KEPT_BYTES:
            shutil.rmtree(into)
    return taken


def compare(folder: pathlib.Path, origin: Origin, name: str, contestants: list[str], rounds: int) -> dict[str, Any]:
    counted: list[dict[str, Took]] = []
    for number in range(rounds + 1):
        turn = number % len(contestants)
        taken = run_round(folder, origin, name, contestants[turn:] + contestants[:turn])
        contestants = [one for one in contestants if one in taken]  # who cannot do it is asked once
        if number:
            counted.append(taken)
    size = origin.published[name].bytes
    return {"bytes": size, "rounds": len(counted), "peers": {one: summary([r[one] for r in counted], [r[OURS] for r in counted], size) for one in contestants}}  # fmt: skip  # noqa: E501


def summary(taken: list[Took], by_us: list[Took], size: int) -> dict[str, Any]:
    """Medians, and of the ratios to us also the quartiles."""
    pairs = list(zip(taken, by_us, strict=True))
    return {
        "GB/s": statistics.median(size / 1e9 / one.seconds for one in taken),
        "GB/s verified": statistics.median(size / 1e9 / (one.seconds + one.hash_seconds) for one in taken),
        "CPU-s/GB": statistics.median(one.cpu / size * 1e9 for one in taken),
        "CPU-s/GB verified": statistics.median((one.cpu + one.hash_cpu) / size * 1e9 for one in taken),
        "peak bytes": max(one.peak for one in taken),
        "time / ours": spread([one.seconds / us.seconds for one, us in pairs]),
        "time verified / ours": spread([(one.seconds + one.hash_seconds) / us.seconds for one, us in pairs]),
        "our CPU / verified": spread([us.cpu / (one.cpu + one.hash_cpu) for one, us in pairs]),
        "rounds": [asdict(one) for one in taken],
    }


def show(name: str, found: dict[str, Any]) -> None:
    print(f"{name}: {found['bytes'] / 1e9:.2f} GB, {found['rounds']} rounds (median [quartiles])")
    for peer, one in sorted(found["peers"].items(), key=lambda item: -item[1]["GB/s verified"]):
        ratios = "  ".join(
            f"{what} {one[what][0]:.2f} [{one[what][1]:.2f} {one[what][2]:.2f}]" for what in one if "our" in what
        )
        print(f"  {peer:11} {one['GB/s']:5.2f} GB/s, verified {one['GB/s verified']:5.2f}; CPU-s/GB {one['CPU-s/GB']:5.2f},"
              f" verified {one['CPU-s/GB verified']:5.2f}; {ratios}", flush=True)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workloads", default="one,flux,loras,small")
    parser.add_argument("--peers", default=",".join(PEERS))
    origins = parser.add_mutually_exclusive_group()
    origins.add_argument("--signed", dest="origin", action="store_const", const="signed", help="SeaweedFS instead of nginx")
    origins.add_argument("--tls", dest="origin", action="store_const", const="tls", help="nginx over TLS")
    given = parser.parse_args()
    names, contestants = given.workloads.split(","), [OURS, *given.peers.split(",")]
    measured: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="hsb-") as made:
        folder = pathlib.Path(made)
        with ORIGINS[given.origin](folder, names) as origin:
            for name in names:
                measured[name] = compare(folder, origin, name, contestants, given.rounds)
                show(name, measured[name])
    results.save("-".join(filter(None, ("fetch", given.origin))), measured)


if __name__ == "__main__":
    main()
