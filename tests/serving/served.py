"""A server in the process of the test, for tiny bundles, and images for it."""

from __future__ import annotations

import functools
import io
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from bundles import write_depth_bundle, write_detection_bundle, write_segmentation_bundle
from PIL import Image
from starlette.testclient import TestClient

import vitsplit
from vitsplit.inference.sources import find_source
from vitsplit.serving.app import make_app
from vitsplit.serving.connections import Config, Server
from vitsplit.serving.limits import Limits
from vitsplit.serving.service import Service


def write_bundles(root: Path) -> list[Path]:
    """One bundle of every task that predicts without a question."""
    return [
        write_segmentation_bundle(root / "rooms", num_tuned_layers=2, seed=1),
        write_depth_bundle(root / "far", num_tuned_layers=3, selection="last", num_prior_layers=3, seed=2),
        write_detection_bundle(root / "things", seed=3),
    ]


def photo(height: int = 48, width: int = 64, seed: int = 0, kind: str = "PNG") -> bytes:
    """An image file of random pixels."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind)
    return file.getvalue()


@contextmanager
def serving(runs: Any, limits: Limits | None = None, **options: Any) -> Iterator[TestClient]:
    """A client of a server."""
    source = find_source(runs, **options)
    folders = runs.values() if isinstance(runs, dict) else runs
    service = Service(source.load(), source.ids(), limits, roots=map(Path, folders))
    with TestClient(make_app(service)) as client:
        client.service = service  # type: ignore[attr-defined]
        yield client


@contextmanager
def listening(runs: Any, limits: Limits | None = None, send_buffer: int = 0, **options: Any) -> Iterator[str]:
    """The host and port of a server in a thread; ``send_buffer`` is that of the system, 0 for its default."""
    source = find_source(runs, **options)
    service = Service(source.load(), source.ids(), limits)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        server = Server(Config(make_app(service), service))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def expected(runs: Any, content: bytes) -> dict[str, Any]:
    """What ``vitsplit.load(...).predict`` returns for an image file."""
    with Image.open(io.BytesIO(content)) as image:
        return _predictor(tuple(runs.items() if isinstance(runs, dict) else runs)).predict(image)


@functools.cache
def _predictor(runs: tuple[Any, ...]) -> vitsplit.Predictor:
    return vitsplit.load(dict(runs)) if isinstance(runs[0], tuple) else vitsplit.load(*runs)
