"""Predictions of many images with Ray Data, into a folder of Parquet files.

One stage of actors reads, predicts and writes. Images therefore never travel through Ray's object store, and there are
no tasks that read and could take the CPUs that actors wait for. A task is a block of inputs, and its result is a file
(``parquet_folder``); Ray repeats a task whose actor or machine has died.

Ray Data's own checkpoints (``CheckpointConfig``) are not used: they are deleted when a command succeeds, so that it
could not be repeated for new images, and they are bound to Ray Data's readers and writers.
"""

from __future__ import annotations

import functools
import io
import json
import logging
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from vitsplit.atomic_files import writing_to
from vitsplit.cluster.items import Item
from vitsplit.cluster.options import ROWS_PER_FILE, ActorPlan, RayOptions, plan_actors
from vitsplit.cluster.parquet_folder import Destination
from vitsplit.cluster.predictor import THREADS, Predictor, table_of
from vitsplit.cluster.records import Record
from vitsplit.errors import RunError, VitsplitError
from vitsplit.extras import require
from vitsplit.memory import available_cores
from vitsplit.runtime.card import is_export

LOAD, START = "load", "start"
DEATHS = 2
"""Number of processes that may die at a block, or at an image of it, before the images, or the image, are isolated."""
SAMPLES = 16
"""Number of images that are measured for an estimate."""
_STORE_BYTES = 256 << 20
"""Memory of Ray's object store on this machine, which holds texts only."""


class BlockWriter:
    """The work of an actor: predicts a block of inputs, and writes a file.

    Args:
        settings: Arguments of ``Predictor``.
        destination: Where the file is written; None: it is only measured.
        threads: Number of threads.
        ids: Identification of the bundles, see ``Source``; None: it is not compared with theirs.
    """

    def __init__(
        self,
        settings: Mapping[str, Any],
        destination: Destination | None,
        threads: int,
        ids: Mapping[str, str] | None = None,
    ) -> None:
        torch.set_num_threads(threads)
        self.threads = max(THREADS, threads // 2)
        self.settings = settings
        self.destination = destination
        self.ids = ids

    @functools.cached_property
    def predictor(self) -> Predictor:
        """The predictor, which the first call loads.

        Raises:
            RunError: The bundles are not those of the command, such as of a training that goes on meanwhile.
            VitsplitError: As ``Predictor``.
        """
        predictor = Predictor(**self.settings)
        if self.ids is not None and predictor.ids() != self.ids:
            raise RunError(
                f"{', '.join(map(str, predictor.bundles))}: the bundles have changed since the command was started. "
                "Copy them to a folder where nothing changes them, and use another --out."
            )
        return predictor

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        """Predicts a block: ``block`` has one text.

        Returns:
            The number of rows and of those with errors, and the first error; or why the command must end (``failed``),
            which is no exception, since Ray would repeat it and print pages of tracebacks.
        """
        items = [Item(*values) for values in json.loads(batch["block"][0])]
        try:
            messages = self._write(items)
        except VitsplitError as error:
            return {"rows": [0], "errors": [0], "first": [""], "failed": [str(error)]}
        return {"rows": [len(items)], "errors": [len(messages)], "first": ["".join(messages[:1])], "failed": [""]}

    def _write(self, items: Sequence[Item]) -> list[str]:
        """Writes the file of a block, and returns its errors."""
        assert self.destination is not None
        part = self.destination.part([item.id for item in items])
        if part.exists():  # written by a process that died before it could say so
            errors = pq.read_table(part, columns=["error"]).column("error")
        else:
            table = self._attempt(items, _Journal(self.destination, part.stem))
            self.destination.commit(table)
            errors = table.column("error")
        return [text for text in errors.to_pylist() if text is not None]

    def table(self, items: Sequence[Item]) -> pa.Table:
        """Predictions of inputs."""
        records = self.predictor.records([item.read for item in items], self.threads)
        return table_of([item.id for item in items], records, self.predictor.types)

    def _attempt(self, items: Sequence[Item], journal: _Journal) -> pa.Table:
        """As ``table``; after ``DEATHS`` processes have died at these inputs, one by one, to find which is the reason.

        Ray repeats the block of a process that has died. An image that crashes it, or for which it has too little
        memory, would therefore stop the command. The journal has two lines per attempt, before and after the model is
        loaded, and one per image begun alone.

        Raises:
            RunError: ``DEATHS`` processes died before the model was loaded, for which no image is the reason.
        """
        lines = journal.lines()
        if lines.count(LOAD) - lines.count(START) >= DEATHS:
            raise RunError(
                "Processes died while loading the model, such as by a lack of memory. Give fewer --num-actors."
            )
        journal.add(LOAD)
        predictor = self.predictor
        journal.add(START)
        if lines.count(START) < DEATHS:
            return self.table(items)
        last = Counter(line for line, after in pairwise([*lines, LOAD]) if after == LOAD)
        records = []
        for index, item in enumerate(items):
            if last[str(index)] >= DEATHS:
                records.append(Record(error=f"{item.id}: {DEATHS} processes died while they predicted this image."))
                continue
            journal.add(str(index))
            records += predictor.records([item.read])
        return table_of([item.id for item in items], records, self.predictor.types)

    def measure(self, items: Sequence[Item]) -> tuple[float, int, int]:
        """Seconds and bytes of a file of these inputs, and the number of those without predictions."""
        start = time.perf_counter()
        table, file = self.table(items), io.BytesIO()
        pq.write_table(table, file, compression="zstd")
        return time.perf_counter() - start, file.tell(), len(items) - table.column("error").null_count


class _Journal:
    """Lines that outlive the processes which write them.

    Args:
        destination: Where the current command adds files.
        name: Name of the block.
    """

    def __init__(self, destination: Destination, name: str) -> None:
        self.folder = destination.folder
        self.file = destination.staging / f"{name}.journal"

    def lines(self) -> list[str]:
        """The lines so far."""
        with writing_to(self.folder, "predictions"):
            return self.file.read_text(encoding="utf-8").split() if self.file.exists() else []

    def add(self, line: str) -> None:
        """Adds a line."""
        with writing_to(self.folder, "predictions"), self.file.open("a", encoding="utf-8") as file:
            print(line, file=file)


@dataclass(frozen=True)
class Estimate:
    """An estimate from a few images, on one actor of the cluster.

    Attributes:
        plan: The actors.
        seconds: Seconds per image of one actor.
        file_bytes: Bytes per image in the output.
        measured: Number of images measured.
        failed: Number of those without predictions.
    """

    plan: ActorPlan
    seconds: float
    file_bytes: float
    measured: int
    failed: int


@dataclass
class Totals:
    """Totals of a command.

    Attributes:
        rows: Number of rows written.
        errors: Number of rows without predictions.
        first: The first error.
    """

    rows: int = 0
    errors: int = 0
    first: str = ""


def run(
    items: Sequence[Item],
    settings: Mapping[str, Any],
    destination: Destination,
    options: RayOptions,
    on_rows: Callable[[int], None],
    ids: Mapping[str, str],
) -> Totals:
    """Predicts all inputs, and writes a file per block.

    Args:
        items: The inputs.
        settings: Arguments of ``Predictor``.
        destination: Where files are written.
        options: Settings of Ray.
        on_rows: Called with the number of rows of every finished file.
        ids: Identification of the bundles.

    Raises:
        ConfigError: The actors do not fit into the cluster.
        RunError: Ray failed, a bundle cannot be loaded or has changed, or a file cannot be written. Finished files
            remain.
    """
    totals = Totals()
    with _cluster(options) as (ray, nodes):
        blocks = divide(items, options, nodes)
        plan = plan_actors(nodes, options, num_files=len(blocks), gpu=_may_use_gpu(settings))
        table = ray.data.from_items([{"block": json.dumps(block)} for block in blocks], override_num_blocks=len(blocks))
        done = table.map_batches(
            BlockWriter,
            fn_constructor_args=[dict(settings), destination, plan.cpus, dict(ids)],
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=plan.count, max_tasks_in_flight_per_actor=2),
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
        )
        for row in done.iter_rows():
            if row["failed"]:
                raise RunError(row["failed"])
            totals.rows += row["rows"]
            totals.errors += row["errors"]
            totals.first = totals.first or row["first"]
            on_rows(row["rows"])
    return totals


def estimate(items: Sequence[Item], settings: Mapping[str, Any], options: RayOptions) -> Estimate:
    """Measures a few inputs, spread over the list, in one actor. Errors as ``run``."""
    step = max(1, len(items) // SAMPLES)
    sample = items[::step][:SAMPLES]
    with _cluster(options) as (ray, nodes):
        num_files = len(divide(items, options, nodes))
        plan = plan_actors(nodes, options, num_files=num_files, gpu=_may_use_gpu(settings))
        kind = ray.remote(BlockWriter).options(num_cpus=plan.cpus, num_gpus=plan.gpus)
        actor = kind.remote(dict(settings), None, plan.cpus)
        ray.get(actor.measure.remote(sample[:2]))  # loads the model, and warms it up
        seconds, num_bytes, failed = ray.get(actor.measure.remote(sample))
    return Estimate(plan, seconds / len(sample), num_bytes / len(sample), len(sample), failed)


def divide(items: Sequence[Item], options: RayOptions, nodes: Sequence[Mapping[str, float]]) -> list[Sequence[Item]]:
    """Divides the inputs into blocks, one per file: several for each CPU, if there are few inputs."""
    cpus = int(sum(node.get("CPU", 0) for node in nodes))
    rows = options.rows_per_file or max(1, min(ROWS_PER_FILE, len(items) // (4 * max(1, cpus))))
    return [items[start : start + rows] for start in range(0, len(items), rows)]


@contextmanager
def _cluster(options: RayOptions) -> Iterator[tuple[Any, list[Mapping[str, float]]]]:
    """Connects to a cluster, or starts Ray here; yields the module and the resources of each machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read on import
    # Ray warns of the way in which Ray Data itself starts actors.
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    require("--engine ray", "ray", "pyarrow", extra="ray")
    import ray
    import ray.data

    try:
        if options.ray_address is None:
            # One CPU more than there are, see `plan_actors`: tasks beside the actors have hardly any work.
            cpus = max(available_cores(), options.num_actors or 1) + 1
            where: dict[str, Any] = {"address": "local", "num_cpus": cpus, "include_dashboard": False}
            where |= {"object_store_memory": _STORE_BYTES}
        else:
            where = {"address": options.ray_address}
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        ray.data.DataContext.get_current().enable_progress_bars = False
        yield ray, [node["Resources"] for node in ray.nodes() if node["Alive"]]
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise _readable(error) from error
    finally:
        ray.shutdown()


def _readable(error: BaseException) -> VitsplitError:
    """The error of this package that caused an error of Ray, or a short form of the latter."""
    cause = getattr(error, "cause", None)
    if isinstance(cause, VitsplitError):
        return cause
    lines = [line for line in str(error).splitlines() if line.strip()]
    return RunError(
        f"Ray failed: {lines[-1][:500] if lines else type(error).__name__}. Finished files remain: repeat the command "
        "to resume."
    )


def _may_use_gpu(settings: Mapping[str, Any]) -> bool:
    """Whether the device is not the CPU, on which exported folders run."""
    return not str(settings.get("device") or "").startswith("cpu") and not any(map(is_export, settings["bundles"]))
