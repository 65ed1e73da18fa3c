"""What the service counts and measures, in Prometheus' text format. No label comes from a request's content."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.exposition import CONTENT_TYPE_LATEST

MEDIA_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_RECENT = 0.2  # weight of the newest batch in the rate


class Metrics:
    """The metrics of one service."""

    def __init__(self, *, in_service: Callable[[], int], waiting: Callable[[], int], ready: Callable[[], bool]) -> None:
        disable_created_metrics()
        self._registry = registry = CollectorRegistry()
        self.seconds_per_image = 0.0  # recently; 0 if nothing was computed yet
        self._requests = Counter(
            "brain_dist_requests", "Requests by route and status.", ["route", "status"], registry=registry
        )
        self._seconds = Histogram(
            "brain_dist_request_seconds", "From a request's head to its answer.", ["route"], buckets=_SECONDS,
            registry=registry,
        )  # fmt: skip
        self._batches = Histogram(
            "brain_dist_batch_images", "Images of a forward pass.", buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )  # fmt: skip
        self._forward = Histogram(
            "brain_dist_batch_seconds", "Time of a forward pass.", buckets=_SECONDS, registry=registry
        )
        self._verdicts = Counter("brain_dist_predictions", "Slices by verdict.", ["verdict"], registry=registry)
        gauges: dict[str, tuple[str, Callable[[], float]]] = {
            "brain_dist_requests_in_service": ("Requests that are read, decoded, waiting or computed.", in_service),
            "brain_dist_images_waiting": ("Images that no batch has taken yet.", waiting),
            "brain_dist_ready": ("1 if new requests are wanted.", ready),
        }
        for name, (text, function) in gauges.items():
            Gauge(name, text, registry=registry).set_function(function)
        ProcessCollector(registry=registry)

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered request."""
        self._requests.labels(route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def batch(self, images: int, seconds: float) -> None:
        """Count a forward pass."""
        self._batches.observe(images)
        self._forward.observe(seconds)
        new = seconds / images
        self.seconds_per_image += (new - self.seconds_per_image) * (_RECENT if self.seconds_per_image else 1)

    def prediction(self, verdict: str | None) -> None:
        """Count a predicted slice."""
        self._verdicts.labels(verdict or "none").inc()

    def text(self) -> bytes:
        """All metrics."""
        return generate_latest(self._registry)
