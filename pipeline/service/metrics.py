"""What Prometheus reads of the service."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import Scope

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE")


class Metrics:
    """Counters of one server, in a registry of their own."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "rayssl_requests", "requests answered", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram("rayssl_request_seconds", "time to an answer", ["route"], registry=self._registry)
        self._batches = Histogram(
            "rayssl_batch_images",
            "images that the encoder saw together",
            buckets=(1, 2, 4, 8, 16, 32),
            registry=self._registry,
        )
        self._waiting = Gauge("rayssl_waiting_images", "images that wait for the encoder", registry=self._registry)

    def count(self, scope: Scope, status: int, seconds: float) -> None:
        """One more request; routes are told by their patterns, so that no path or id becomes a name."""
        route = getattr(scope.get("route"), "path", "other")
        method = scope["method"] if scope["method"] in METHODS else "other"
        self._requests.labels(method, route, str(status)).inc()
        self._seconds.labels(route).observe(seconds)

    def saw(self, images: int) -> None:
        """One more batch."""
        self._batches.observe(images)

    def watch_queue(self, waiting: Callable[[], int]) -> None:
        """Where the number of waiting images is from."""
        self._waiting.set_function(waiting)

    def text(self) -> bytes:
        """All of them, in Prometheus' text format."""
        return generate_latest(self._registry)
