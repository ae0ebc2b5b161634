"""Metrics for Prometheus, in a registry of their own: nothing is sent, they are only read at ``/metrics``."""

from __future__ import annotations

import os

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

from vitsplit.inference.shared_pass import PassCount

WORKERS_FOLDER = "PROMETHEUS_MULTIPROC_DIR"
"""Variable of prometheus_client: the folder in which the workers of one server share their values."""
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of a server."""

    def __init__(self) -> None:
        own = CollectorRegistry()
        self._registry = CollectorRegistry() if WORKERS_FOLDER in os.environ else own
        if WORKERS_FOLDER in os.environ:
            MultiProcessCollector(self._registry)
        self.stages = Histogram(
            "vitsplit_stage_seconds", "Time of a stage of a request.", ["stage"], buckets=_SECONDS, registry=own
        )
        self.responses = Counter("vitsplit_responses", "Responses.", ["route", "status"], registry=own)
        self.refusals = Counter("vitsplit_refusals", "Requests that were refused.", ["reason"], registry=own)
        self.accepted = Gauge(
            "vitsplit_accepted_requests",
            "Requests that wait for the model, or are decoded, computed or encoded.",
            multiprocess_mode="livesum",
            registry=own,
        )
        self.batches = Histogram(
            "vitsplit_batch_images", "Images of a batch.", buckets=(1, 2, 4, 8, 16, 32, 64), registry=own
        )
        self.passes = Counter(
            "vitsplit_backbone_passes", "Passes of the backbone, by the number of heads.", ["heads"], registry=own
        )

    def add_passes(self, passes: PassCount) -> None:
        """Counts passes of the backbone."""
        for (_, users), count in passes.items():
            self.passes.labels(str(len(users))).inc(count)  # names would make any number of series

    def text(self) -> bytes:
        """The metrics in the text format of Prometheus."""
        return generate_latest(self._registry)
