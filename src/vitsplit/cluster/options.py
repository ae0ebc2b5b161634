"""Settings of ``vitsplit predict --engine ray``, and the division of a cluster among actors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import Field

from vitsplit.config import Settings
from vitsplit.errors import ConfigError

ROWS_PER_FILE = 256


class RayOptions(Settings):
    """Settings of Ray."""

    num_actors: Annotated[int, Field(ge=1, le=100_000)] | None = None
    """Number of processes with a model; None: as many as the GPUs hold, or one per two CPUs without GPUs."""
    gpus_per_actor: Annotated[float, Field(ge=0, le=64)] | None = None
    """GPUs of a process, such as 0.5 for two processes per GPU; None: 1 if the cluster has GPUs."""
    rows_per_file: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    """Images per file, which are repeated if a process is killed; None: 256, or fewer for few images."""
    image_column: str | None = None
    """Column of a Parquet file with the images; None: the first of image, bytes and path."""
    ray_address: str | None = None
    """Address of a running cluster, such as auto or ray://host:10001; None: Ray is started on this machine."""
    price_per_hour: Annotated[float, Field(ge=0, le=1e6)] | None = None
    """Price of all machines together per hour, for the estimate of --dry-run."""


@dataclass(frozen=True)
class ActorPlan:
    """The processes with a model.

    Attributes:
        count: Their number.
        cpus: CPUs, and threads, of each.
        gpus: GPUs of each.
    """

    count: int
    cpus: int
    gpus: float


def plan_actors(nodes: Sequence[Mapping[str, float]], options: RayOptions, *, num_files: int, gpu: bool) -> ActorPlan:
    """Divides a cluster among actors, so that all of them can be placed and one CPU is left.

    An actor keeps its CPUs as long as the command runs. With none left, other tasks of Ray Data would wait forever for
    actors that in turn wait for them.

    Args:
        nodes: Resources of each machine: ``CPU`` and ``GPU``.
        options: The settings.
        num_files: Number of files to write: more actors would have no work.
        gpu: Whether GPUs may be used.

    Raises:
        ConfigError: The actors do not fit into the cluster.
    """
    total_gpus = sum(node.get("GPU", 0) for node in nodes)
    gpus = options.gpus_per_actor if options.gpus_per_actor is not None else float(gpu and total_gpus > 0)
    total_cpus = int(sum(node.get("CPU", 0) for node in nodes))
    count = options.num_actors
    if count is None:
        count = max(1, min(_places(nodes, 1, gpus) if gpus else total_cpus // 2, total_cpus - 1, num_files))
    for cpus in range(int(max(node.get("CPU", 0) for node in nodes)), 0, -1):
        if _places(nodes, cpus, gpus) >= count and total_cpus - count * cpus >= 1:
            return ActorPlan(count, cpus, gpus)
    raise ConfigError(
        f"--num-actors {count}: the cluster has {total_cpus} CPUs and {total_gpus:g} GPUs on {len(nodes)} machines, "
        f"too few for {count} actors with a CPU and {gpus:g} GPUs each, and one more CPU. Give a smaller number, or "
        "--gpus-per-actor."
    )


def _places(nodes: Sequence[Mapping[str, float]], cpus: int, gpus: float) -> int:
    """The number of actors that fit."""
    places = 0
    for node in nodes:
        here = int(node.get("CPU", 0) // cpus)
        places += min(here, int(node.get("GPU", 0) / gpus + 1e-9)) if gpus else here
    return places
