"""What a server counts, in Prometheus's text format."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Of one application; two in a process do not share them."""

    content_type = CONTENT_TYPE_LATEST

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self.requests = Counter(
            "detr_fast_requests", "Answers to /predict.", ["status"], registry=self.registry
        )
        self.in_flight = Gauge("detr_fast_in_flight", "Questions not yet answered.", registry=self.registry)
        self.request_seconds = Histogram(
            "detr_fast_request_seconds", "From the head of a question to its answer.",
            buckets=SECONDS, registry=self.registry,
        )  # fmt: skip
        self.model_seconds = Histogram(
            "detr_fast_model_seconds", "A batch through the model.", buckets=SECONDS, registry=self.registry
        )
        self.batch_size = Histogram(
            "detr_fast_batch_size", "Images of a batch.",
            buckets=(1, 2, 4, 8, 16, 32, 64), registry=self.registry,
        )  # fmt: skip

    def text(self) -> bytes:
        """All of them."""
        return generate_latest(self.registry)
