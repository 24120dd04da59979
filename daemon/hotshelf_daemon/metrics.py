"""The contract's metrics, on a registry of their own. No repository, path or id is ever a label."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest

_SECONDS = (0.0005, 0.001, 0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800)
OUTCOMES = ("hit", "coalesced", "miss", "error")
STATES = ("ready", "ingest", "trash", "quarantine", "bundles")


class Metrics:
    def __init__(self, version: str) -> None:
        self.registry = registry = CollectorRegistry()
        Info("hotshelf_build", "The running version.", registry=registry).info({"version": version})
        self.acquires = Counter("hotshelf_acquire_total", "Acquires answered.", ["outcome"], registry=registry)
        self.acquire_s = Histogram(
            "hotshelf_acquire_duration_seconds", "Time to answer.", ["outcome"], buckets=_SECONDS, registry=registry
        )
        self.store_bytes = Gauge("hotshelf_store_bytes", "Bytes held, each blob once.", ["state"], registry=registry)
        self.budget_bytes = Gauge("hotshelf_budget_bytes", "Bytes the shelf may use.", registry=registry)
        self.origin_bytes = Counter("hotshelf_origin_bytes_total", "Bytes read at origins.", ["origin"], registry=registry)
        self.origin_requests = Counter(
            "hotshelf_origin_requests_total", "Requests made at origins.", ["origin", "result"], registry=registry
        )
        self.verify_failures = Counter(
            "hotshelf_verify_failures_total", "Bytes that were not what they claim.", ["reason"], registry=registry
        )
        self.evictions = Counter("hotshelf_evictions_total", "Snapshots evicted.", ["reason"], registry=registry)
        self.leases = Gauge("hotshelf_leases", "Leases held.", registry=registry)
        self.pins = Gauge("hotshelf_pins", "Pins held.", registry=registry)
        self.prefetch_bytes = Counter("hotshelf_prefetch_bytes_total", "Bytes prefetched.", ["result"], registry=registry)
        self.ingest_active = Gauge("hotshelf_ingest_active", "Blobs being fetched.", registry=registry)
        self.index_wal_bytes = Gauge("hotshelf_index_wal_bytes", "Size of the index's write-ahead log.", registry=registry)
        self.configuration_is_followed = Gauge(
            "hotshelf_config_last_reload_successful", "Whether the file says what the daemon does.", registry=registry
        )
        self.configuration_is_followed.set(1)
        # Made once: a counter that has never counted is 0, not absent, and a hit looks up no labels.
        self._acquired = {o: (self.acquires.labels(o), self.acquire_s.labels(o)) for o in OUTCOMES}
        for state in STATES:
            self.store_bytes.labels(state)

    def acquired(self, outcome: str, duration_s: float) -> None:
        count, durations = self._acquired[outcome]
        count.inc()
        durations.observe(duration_s)

    def render(self) -> bytes:
        return generate_latest(self.registry)
