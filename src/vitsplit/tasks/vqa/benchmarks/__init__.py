"""Benchmarks of visual question answering: one module and one line of ``BENCHMARKS`` each."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.vqa.benchmarks.base import Benchmark, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.daquar import open_daquar
from vitsplit.tasks.vqa.benchmarks.gqa import open_gqa
from vitsplit.tasks.vqa.benchmarks.judged import open_llava_bench, open_mmvet
from vitsplit.tasks.vqa.benchmarks.mmbench import open_mmbench
from vitsplit.tasks.vqa.benchmarks.pope import open_pope
from vitsplit.tasks.vqa.benchmarks.scienceqa import open_scienceqa
from vitsplit.tasks.vqa.benchmarks.textvqa import open_textvqa
from vitsplit.tasks.vqa.benchmarks.vizwiz import open_vizwiz
from vitsplit.tasks.vqa.benchmarks.vqav2 import open_vqav2

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkQuestion", "open_benchmark"]

BENCHMARKS: dict[str, Callable[[Path], Benchmark[Any]]] = {
    "daquar": open_daquar,
    "gqa": open_gqa,
    "llava-bench": open_llava_bench,
    "mmbench": open_mmbench,
    "mmbench-cn": partial(open_mmbench, chinese=True),
    "mmvet": open_mmvet,
    "pope": open_pope,
    "scienceqa": open_scienceqa,
    "scienceqa-img": partial(open_scienceqa, images_only=True),
    "scienceqa-img-lenient": partial(open_scienceqa, images_only=True, lenient=True),
    "scienceqa-lenient": partial(open_scienceqa, lenient=True),
    "textvqa": open_textvqa,
    "textvqa-ocr": partial(open_textvqa, ocr=True),
    "vizwiz": open_vizwiz,
    "vqav2": open_vqav2,
}
"""Name to a function that opens the benchmark from a folder or file, see its docstring."""


def open_benchmark(name: str, path: str | Path, *, limit: int | None = None, hint: str = "") -> Benchmark[Any]:
    """Reads a benchmark's files.

    Args:
        name: One of ``BENCHMARKS``.
        path: Folder of the files, or the file of questions.
        limit: Maximum number of questions (see ``Benchmark.take``); None: all.
        hint: Text appended to every question in training, for benchmarks without their own prompts (``daquar``).

    Raises:
        ConfigError: The benchmark is unknown, the limit is below 1, or a package is missing.
        DataError: Files are invalid; the message names file and question.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"Unknown benchmark '{name}'. Benchmarks: {', '.join(BENCHMARKS)}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit {limit}: must be at least 1.")
    path = Path(path)
    benchmark: Benchmark[Any] = open_daquar(path, hint=hint) if name == "daquar" else BENCHMARKS[name](path)
    if not benchmark.questions:
        raise DataError(f"{path}: no questions found. Download the files again.")
    return benchmark if limit is None else benchmark.take(limit)
