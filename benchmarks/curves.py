"""Draws the learning curves of finished runs: the mean training loss, and the score of evaluations, over steps or time.

Runs of one label, such as several seeds, are averaged.

    python benchmarks/curves.py --runs LoRA=runs/lora-0 LoRA=runs/lora-1 probe=runs/probe --minutes 10 --out curves.png
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from matplotlib.figure import Figure
from numpy.typing import NDArray

from vitsplit.analysis.study_report import COLORS
from vitsplit.engine.run_folder import RunFolder


@dataclass
class Options:
    """Settings of the figure."""

    runs: tuple[str, ...]
    """The runs, as LABEL=FOLDER."""
    out: Path
    """The PNG file."""
    minutes: float | None = None
    """The training time of every run, which becomes the horizontal axis; None: steps."""
    metric: str = "miou"
    """The metric of the second panel, drawn if runs have several evaluations."""
    unit: float = 100.0
    """Factor of the metric."""
    smooth: int = 30
    """Number of steps over which losses are averaged."""


def curves(folder: Path, options: Options) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(R, 2) steps or minutes and mean losses since the row before, and (E, 2) the same of evaluations."""
    rows = RunFolder(folder).read_metrics()
    losses = np.array([(row["step"], row["loss"]) for row in rows if "loss" in row], float)
    scores = np.array([(row["step"], row["eval"][options.metric]) for row in rows if "eval" in row], float)
    width = max(1, round(options.smooth / max(1.0, float(np.diff(losses[:, 0]).mean()))))
    mean = np.convolve(losses[:, 1], np.ones(width) / width, "valid")
    losses = np.stack([losses[width - 1 :, 0], mean], axis=1)
    if options.minutes is not None:
        scale = options.minutes / rows[-1]["step"]
        losses[:, 0] *= scale
        scores[:, 0] *= scale
    return losses, scores * (1.0, options.unit)


def mean_of(each: list[NDArray[np.float64]]) -> NDArray[np.float64]:
    """The mean curve of runs with the same rows."""
    shortest = min(map(len, each))
    mean: NDArray[np.float64] = np.mean([curve[:shortest] for curve in each], axis=0)
    return mean


def main(options: Options) -> None:
    by_label: dict[str, list[Path]] = {}
    for run in options.runs:
        label, _, folder = run.rpartition("=")
        by_label.setdefault(label, []).append(Path(folder))
    found = {label: [curves(folder, options) for folder in folders] for label, folders in by_label.items()}
    evaluated = any(len(scores) > 1 for runs in found.values() for _, scores in runs)
    figure = Figure(figsize=(10.5 if evaluated else 6.4, 4.0), layout="constrained")
    panels = figure.subplots(1, 2 if evaluated else 1, squeeze=False)[0]
    for index, (label, runs) in enumerate(found.items()):
        title = f"{label} ({len(runs)} seeds)" if len(runs) > 1 else label
        for panel, kind, style in zip(panels, (0, 1), ("-", ".-"), strict=False):
            position, value = mean_of([run[kind] for run in runs]).T
            panel.plot(position, value, style, color=COLORS[index % len(COLORS)], label=title, linewidth=1.3)
    for panel, name in zip(panels, (f"training loss, mean of {options.smooth} steps", options.metric), strict=False):
        panel.set_xlabel("steps" if options.minutes is None else "minutes of training")
        panel.set_ylabel(name)
        panel.grid(alpha=0.25)
    panels[-1].legend(frameon=False, fontsize=8)
    figure.savefig(options.out, dpi=110)


if __name__ == "__main__":
    main(tyro.cli(Options))
