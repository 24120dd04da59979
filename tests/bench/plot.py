"""The picture of what `tests.bench.fetch` measured: `python -m tests.bench.plot` writes `results/fetch.png`."""

from __future__ import annotations

import json
from typing import Any

from tests.bench.fetch import OURS
from tests.bench.results import FOLDER

#: Names of workloads as a reader wants them.
TITLES = {
    "one": "one file of 2 GiB",
    "flux": "a Flux-shaped set, 3 GB",
    "loras": "32 LoRAs of 64 MiB",
    "small": "500 files of 32 KiB",
}
UNVERIFIED, VERIFIED, US = "#c9d3df", "#5b7c9d", "#e4572e"


def draw(results: dict[str, Any], path: str) -> None:
    """One panel a workload: what each client brings, pale; what is left with a sha256 after it, dark; ours includes it."""
    from matplotlib import pyplot

    names = [name for name in TITLES if name in results]
    figure, panels = pyplot.subplots(1, len(names), figsize=(4.2 * len(names), 3.8), squeeze=False)
    for panel, name in zip(panels[0], names, strict=True):
        peers = sorted(results[name]["peers"].items(), key=lambda item: item[1]["GB/s verified"])
        at = range(len(peers))
        panel.barh(at, [one["GB/s"] for _, one in peers], color=[US if peer == OURS else UNVERIFIED for peer, _ in peers])
        panel.barh(
            at, [one["GB/s verified"] for _, one in peers], color=[US if peer == OURS else VERIFIED for peer, _ in peers]
        )
        panel.set_yticks(list(at), [peer for peer, _ in peers])
        panel.set_title(TITLES[name], fontsize=11)
        panel.set_xlabel("GB/s (dark: with sha256)", fontsize=9)
        panel.spines[["top", "right"]].set_visible(False)
        panel.tick_params(labelsize=9)
    figure.suptitle(f"from a local origin to synced files — {results['machine']}", fontsize=9, color="#555555", y=0.06)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    draw(json.loads((FOLDER / "fetch.json").read_text()), str(FOLDER / "fetch.png"))
