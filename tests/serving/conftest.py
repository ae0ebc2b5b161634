import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from served import serving, write_bundles

from vitsplit.inference.sources import find_source
from vitsplit.serving.app import make_app
from vitsplit.serving.connections import Config, Server
from vitsplit.serving.service import Service


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Bundles of segmentation, depth and detection by name."""
    folders = write_bundles(tmp_path_factory.mktemp("served"))
    return {folder.name: folder for folder in folders}


@pytest.fixture(scope="module")
def client(runs: dict[str, Path]) -> Iterator[Any]:
    """A client of a server of all three."""
    with serving(runs) as client:
        yield client


@pytest.fixture(scope="module")
def address(runs: dict[str, Path]) -> Iterator[str]:
    """A server on a port, in a thread."""
    source = find_source(runs)
    service = Service(source.load(), source.ids())
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = Server(Config(make_app(service), service.limits), service)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        server.should_exit = True
        thread.join()
