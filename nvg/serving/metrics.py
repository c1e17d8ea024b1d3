"""Prometheus metrics of a replica. Ray exports them, with replica and deployment as labels, on every node's metrics
port (`ray metrics launch-prometheus`, docs/guides/serve.md); names there begin with `ray_`."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge, Histogram

_SECONDS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0]


class Metrics:
    """The metrics of a replica: requests, queue, batch sizes, seconds by stage."""

    def __init__(self) -> None:
        self._requests = Counter("nvg_requests", "Answered HTTP requests.", tag_keys=("route", "status"))
        self._seconds = Histogram(
            "nvg_request_seconds", "From a request's arrival to its answer's end.", _SECONDS, tag_keys=("route",)
        )
        self._queue = Gauge("nvg_queue_images", "Images that wait to be drawn.")
        self._batches = Histogram("nvg_batch_images", "Images drawn at once.", [1, 2, 4, 8, 16, 32, 64])
        self._stages = Histogram("nvg_stage_seconds", "Seconds of a batch's stage.", _SECONDS, tag_keys=("stage",))

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered HTTP request; status 499 = the client went away."""
        self._requests.inc(tags={"route": route, "status": str(status)})
        self._seconds.observe(seconds, tags={"route": route})

    def queue(self, images: int) -> None:
        """Set the number of images that wait."""
        self._queue.set(images)

    def batch(self, images: int) -> None:
        """Count a batch of this number of images."""
        self._batches.observe(images)

    def stage(self, stage: int, seconds: float) -> None:
        """Count the seconds of a stage of a batch."""
        self._stages.observe(seconds, tags={"stage": str(stage)})
