"""The benchmarks of visual question answering, by name. One is a file here and a line of ``BENCHMARKS``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from vitsplit.errors import ConfigError, DataError
from vitsplit.tasks.vqa.benchmarks.base import Benchmark, BenchmarkQuestion
from vitsplit.tasks.vqa.benchmarks.daquar import open_daquar
from vitsplit.tasks.vqa.benchmarks.gqa import open_gqa
from vitsplit.tasks.vqa.benchmarks.llava_bench import open_llava_bench
from vitsplit.tasks.vqa.benchmarks.mmbench import open_mmbench
from vitsplit.tasks.vqa.benchmarks.mmvet import open_mmvet
from vitsplit.tasks.vqa.benchmarks.pope import open_pope
from vitsplit.tasks.vqa.benchmarks.run import run_benchmark
from vitsplit.tasks.vqa.benchmarks.scienceqa import open_scienceqa
from vitsplit.tasks.vqa.benchmarks.textvqa import open_textvqa
from vitsplit.tasks.vqa.benchmarks.vizwiz import open_vizwiz
from vitsplit.tasks.vqa.benchmarks.vqav2 import open_vqav2

__all__ = ["BENCHMARKS", "Benchmark", "BenchmarkQuestion", "open_benchmark", "run_benchmark"]

BENCHMARKS: dict[str, Callable[[Path], Benchmark]] = {
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
"""Name to what opens it from a folder or file; its docstring says what must be there."""


def open_benchmark(name: str, path: str | Path, *, limit: int | None = None, hint: str = "") -> Benchmark:
    """Reads a benchmark's files.

    Args:
        name: One of ``BENCHMARKS``.
        path: Where its files are, or the file of questions.
        limit: Only so many questions (see ``Benchmark.take``); None: all.
        hint: What a bundle's training added to every question of a file of questions (``daquar``); benchmarks with
            prompts of their own take none.

    Raises:
        ConfigError: There is no such benchmark, the limit is below 1, or a package is missing.
        DataError: Files cannot be used; the message names file and question.
    """
    if name not in BENCHMARKS:
        raise ConfigError(f"There is no benchmark '{name}'. Benchmarks: {', '.join(BENCHMARKS)}.")
    if limit is not None and limit < 1:
        raise ConfigError(f"A limit of {limit} questions leaves none. Give at least 1.")
    path = Path(path)
    benchmark: Benchmark = open_daquar(path, hint=hint) if name == "daquar" else BENCHMARKS[name](path)
    if not benchmark.questions():
        raise DataError(f"{path}: no questions in it. Fetch the files again.")
    return benchmark if limit is None else benchmark.take(limit)
