"""What the front counts, in Prometheus' format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)


class Metrics:
    """Counters of one front; their names begin with ``dynllava_``."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = self.registry
        self.requests = Counter(
            "dynllava_requests",
            "Requests by path and HTTP status",
            ["path", "status"],
            registry=registry,
        )
        self.images = Counter(
            "dynllava_images", "Pictures by method and cache (hit or miss)", ["method", "cache"],
            registry=registry,
        )  # fmt: skip
        self.kept = Counter(
            "dynllava_kept_tokens", "Image tokens sent to the engine", ["method"], registry=registry
        )
        self.dropped = Counter(
            "dynllava_dropped_tokens",
            "Image tokens that stayed here",
            ["method"],
            registry=registry,
        )
        self.tower = Histogram(
            "dynllava_tower_seconds", "Tower, selection and projector of a batch of pictures",
            ["method"], buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.batch = Histogram(
            "dynllava_tower_batch",
            "Pictures in a batch",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=registry,
        )
        self.up = Gauge("dynllava_engine_up", "1 while the engine answers", registry=registry)
        self.cached = Gauge("dynllava_cache_bytes", "Bytes of cached rows", registry=registry)
        self.waiting = Gauge("dynllava_requests_in_flight", "Requests under way", registry=registry)
        self.restarts = Counter(
            "dynllava_engine_restarts", "Starts after the first", registry=registry
        )

    def text(self) -> str:
        """Return all of them as text."""
        return generate_latest(self.registry).decode()
