"""Starting and stopping the server: one process, or several workers behind one port."""

from __future__ import annotations

import ipaddress
import logging
import multiprocessing
import os
import signal
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import Any, Literal

import torch
from prometheus_client.multiprocess import mark_process_dead

from vitsplit.errors import ConfigError, RunError
from vitsplit.exporting.cache import find_source_for
from vitsplit.files import is_address
from vitsplit.inference.sources import Source
from vitsplit.memory import available_cores
from vitsplit.runtime.card import is_export
from vitsplit.serving.admin import Administration, check_administration, read_token
from vitsplit.serving.app import make_app
from vitsplit.serving.connections import Config, Server
from vitsplit.serving.limits import Limits
from vitsplit.serving.metrics import WORKERS_FOLDER
from vitsplit.serving.service import Service
from vitsplit.serving.shared_changes import SharedChanges

logger = logging.getLogger(__name__)

BACKLOG = 1024
"""Connections that the system accepts before the server does."""
SHORTEST_LIFE = 30.0
"""Seconds: a worker that ends earlier is not started again, since it would end again."""


@dataclass(frozen=True)
class ServeOptions:
    """What is served, and how. Sent to workers.

    Attributes:
        runs: Run or bundle folders, or an exported folder.
        runtime: See ``find_source_for``.
        loading: Options of ``load_predictor``.
        batch_size: See ``vitsplit.inference.batches.batch_limit``.
        limits: Limits of requests.
        bundle_root: Folder of the bundles that may be added.
        token: The token for adding them.
        shared: Folder in which workers share their changes; None: there is one worker.
        threads: Number of threads of PyTorch; None: its default.
        hosts: Names in ``Host`` of requests that are accepted; None: all.
        proxies: Addresses of reverse proxies, whose ``X-Forwarded-For`` names the client.
    """

    runs: Sequence[str]
    runtime: Literal["torch", "onnx", "openvino"] | None = None
    loading: dict[str, Any] = field(default_factory=dict)
    batch_size: int | None = None
    limits: Limits = field(default_factory=Limits)
    bundle_root: Path | None = None
    token: str | None = None
    shared: Path | None = None
    threads: int | None = None
    hosts: frozenset[str] | None = None
    proxies: Sequence[str] = ()

    @property
    def folders(self) -> list[Path]:
        """The runs on this machine as absolute paths, which errors of requests omit."""
        return [Path(run).absolute() for run in self.runs if not is_address(run)]

    @property
    def located(self) -> list[str]:
        """The runs as absolute paths, or as they are if they are addresses on the hub."""
        return [run if is_address(run) else str(Path(run).absolute()) for run in self.runs]

    def source(self) -> Source:
        """The heads."""
        return find_source_for(self.located, self.runtime, say=logger.info, **self.loading)


def serve(
    options: ServeOptions,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    workers: int = 1,
    admin_token_file: Path | None = None,
    allowed_hosts: Sequence[str] = (),
    trusted_proxies: Sequence[str] = (),
    say: Callable[[str], None] = print,
) -> int:
    """Serves heads until a signal stops the process. Accepted requests are answered first.

    Args:
        options: What is served.
        host: The address.
        port: The port; 0: any free one.
        workers: Number of processes, each with the model in memory.
        admin_token_file: File of the token for adding and removing bundles below ``options.bundle_root``.
        allowed_hosts: See ``accepted_hosts``.
        trusted_proxies: Addresses or networks of reverse proxies, whose ``X-Forwarded-For`` names the client.
        say: Receives a line with the address.

    Returns:
        The exit status: 0, or 1 if a worker ended by itself.

    Raises:
        VitsplitError: As ``find_source_for`` and its ``load``; a flag is invalid; or the port is taken.
    """
    check_administration(admin_token_file, options.bundle_root)
    for proxy in trusted_proxies:
        try:
            ipaddress.ip_network(proxy)
        except ValueError:
            raise ConfigError(
                f"--trusted-proxy {proxy}: must be an address or a network, such as 10.0.0.0/8."
            ) from None
    options = replace(options, hosts=accepted_hosts(host, allowed_hosts), proxies=tuple(trusted_proxies))
    if admin_token_file is not None:
        options = replace(options, token=read_token(admin_token_file))
        if options.runtime in ("onnx", "openvino") or any(is_export(run) for run in options.runs):
            raise ConfigError("--bundle-root: bundles cannot be added to a graph. Serve bundles with PyTorch.")
    source = options.source()
    with _listen(host, port) as listener:
        address = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"
        if workers == 1:
            return _run(options, source, listener, lambda: say(f"serving {', '.join(source.cards)} at {address}"))
        source.ids()  # makes the export, if there is one, before the workers need it
        threads = max(1, available_cores() // workers)
        say(f"starting {workers} workers for {', '.join(source.cards)} at {address}")
        with (
            tempfile.TemporaryDirectory(prefix="vitsplit-metrics-") as folder,
            tempfile.TemporaryDirectory(prefix="vitsplit-bundles-") as shared,
            _environment(WORKERS_FOLDER, folder),
        ):
            options = replace(options, threads=threads, shared=Path(shared))

            def forget(worker: int) -> None:
                mark_process_dead(worker)
                SharedChanges(Path(shared), worker).leave()

            return _Workers(partial(_run_worker, options, listener), workers, forget).run()


LOCAL_HOSTS = frozenset({"localhost", "127.0.0.1", "[::1]"})


def accepted_hosts(host: str, allowed: Sequence[str]) -> frozenset[str] | None:
    """Names in ``Host`` of requests that are accepted; None: all.

    On the machine's own address, other names are those of web sites that a browser was led to it by (DNS rebinding).

    Args:
        host: The address that is listened at.
        allowed: Further names.
    """
    try:
        local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        local = host == "localhost"
    if not local and not allowed:
        return None
    own = f"[{host}]" if ":" in host else host
    return LOCAL_HOSTS | {own} | {name.lower() for name in allowed}


@contextmanager
def _environment(name: str, value: str) -> Iterator[None]:
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


@contextmanager
def _on_signal(function: Callable[[], object]) -> Iterator[None]:
    """Calls a function at SIGTERM and SIGINT within the block."""
    before = {number: signal.signal(number, lambda *_: function()) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        raise RunError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}). Choose another --port."
        ) from error


def _run(
    options: ServeOptions,
    source: Source,
    listener: socket.socket,
    on_ready: Callable[[], None],
    last: Callable[[], bool] = lambda: True,
) -> int:
    """Loads the heads, and serves them in this process."""
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    ids = source.ids()
    service = Service(source.load(), ids, options.limits, batch_size=options.batch_size, roots=options.folders)
    administration = None
    if options.bundle_root is not None and options.token is not None:
        shared = None if options.shared is None else SharedChanges(options.shared)
        administration = partial(Administration, service, options.bundle_root, options.token, shared=shared)
    server = Server(Config(make_app(service, administration, options.hosts), service, options.proxies), last)
    # For signals before uvicorn handles them, and after it has stopped, when it raises them again.
    with _on_signal(lambda: setattr(server, "should_exit", True)):
        on_ready()
        server.run(sockets=[listener])
    return 0


def _run_worker(options: ServeOptions, listener: socket.socket, stopped: Event) -> None:
    threading.Thread(target=_end_with_parent, args=(stopped,), daemon=True).start()
    logging.basicConfig(format="%(message)s")
    # While other workers run, or are started, the port must accept connections.
    _run(options, options.source(), listener, lambda: None, stopped.is_set)


def _end_with_parent(stopped: Event) -> None:
    """Stops a worker whose parent was killed, so that none is left behind."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    stopped.set()
    os.kill(os.getpid(), signal.SIGTERM)


class _Workers:
    """Processes that accept connections of one socket. One that ends by itself is replaced.

    Args:
        work: Runs in each process, and is given an event that is set when all are to stop.
        count: Number of processes.
        on_end: Receives the number of a process that ended by itself.
    """

    def __init__(self, work: Callable[[Event], None], count: int, on_end: Callable[[int], None]) -> None:
        self._work, self._count, self._on_end = work, count, on_end
        self._context = multiprocessing.get_context("spawn")
        self._signaled, self._stopped = threading.Event(), self._context.Event()

    def run(self) -> int:
        """Runs the workers until a signal; returns the exit status."""
        with _on_signal(self._signaled.set):
            return self._run()

    def _run(self) -> int:
        workers = [self._start() for _ in range(self._count)]
        failed = False
        while not failed and not self._signaled.wait(0.2):
            for index, (process, started) in enumerate(workers):
                if process.exitcode is None:
                    continue
                failed = time.monotonic() - started < SHORTEST_LIFE
                logger.error("worker %s ended with status %s", process.pid, process.exitcode)
                if failed:
                    break
                assert process.pid is not None
                self._on_end(process.pid)
                workers[index] = self._start()
        self._stopped.set()
        for process, _ in workers:
            if process.exitcode is None:
                process.terminate()
        for process, _ in workers:
            process.join()
        return 1 if failed else 0

    def _start(self) -> tuple[BaseProcess, float]:
        process = self._context.Process(target=self._work, args=(self._stopped,))
        process.start()
        return process, time.monotonic()
