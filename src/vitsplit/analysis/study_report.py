"""Reports of studies as page, plots and JSON: score against cost, and score over K_t and K_p (Fig. 11)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vitsplit.analysis.runs import Outcome
from vitsplit.analysis.study import Row, to_json
from vitsplit.engine.run_folder import RunFolder
from vitsplit.errors import RunError
from vitsplit.files import real_number
from vitsplit.methods.split.config import split_settings
from vitsplit.report import Page
from vitsplit.tasks import Score

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = ("#3b6fb6", "#d1603d", "#4f9a5b", "#8a63b0", "#b48a2c", "#4c9ca8", "#c2569a", "#6f7780", "#7f9c3b", "#7a4b32")


def write_study(
    rows: Sequence[Row],
    folder: Path,
    *,
    title: str,
    subtitle: str,
    notes: Sequence[str] = (),
    grid: bool = False,
    curves: bool = False,
) -> Path:
    """Writes ``results.json``, ``cost.png`` (``grid.png``, ``curves.png``) and ``index.html``; returns the page.

    Args:
        rows: The variants; those without a finished run are marked.
        folder: Output folder.
        title: Title of the page.
        subtitle: Description of task and data.
        notes: Paragraphs below the table.
        grid: Whether to plot the score over K_t and K_p.
        curves: Whether to plot the score over training time, if runs were evaluated during training.
    """
    page = Page(title, subtitle=subtitle)
    done = [row for row in rows if row.scores]
    if done:
        page.figures(_best(done))
    page.table(*table(rows))
    for note in notes:
        page.text(note, soft=True)
    if done:
        figures = {"cost": plot_cost(done)} | ({"grid": plot_grid(done)} if grid else {})
        # A run evaluated only at its end has no curve.
        if curves and any(len(progress(each)) > 1 for row in done for each in row.by_seed.values()):
            figures["curves"] = plot_curves(done)
        for name, figure in figures.items():
            page.plot(figure, name)
        page.text(describe_cost(done))
        if "curves" in figures:
            page.text("Curves show the evaluations of every run; runs of a variant have one color.", soft=True)
        page.text(
            "Points are means over seeds, bars standard deviations, and crosses runs. Params are trainable "
            "parameters. GMACs are 10^9 multiply-adds per prediction at the crop size, including the frozen backbone; "
            "those per head are of an additional head on a shared pass: the blocks that are not shared. "
            "Seconds are the wall time of training steps, which is not meaningful for parallel runs or on a busy "
            "machine.",
            soft=True,
        )
        page.heading("Runs")
        page.table(*_run_table(done))
    return page.write(folder, {"results": to_json(rows)})


def describe_cost(rows: Sequence[Row]) -> str:
    """The best variant, and the cheapest head at most a standard error of the difference, or 2 percent, behind."""
    best = _best_row(rows)

    def error(row: Row) -> float:
        return (row.spread or 0.0) / math.sqrt(len(row.scores))

    def is_near(row: Row) -> bool:
        return best.mean - row.mean <= max(math.hypot(error(best), error(row)), 0.02 * abs(best.mean))

    cheapest = min((row for row in rows if row is best or is_near(row)), key=lambda row: row.cost.head_gmacs)
    text = (
        f"{best.variant.label} has the best mean, {best.mean * _scale(best):.2f}, with "
        f"{_per_head(best)} GMACs per additional head"
    )
    if cheapest is best:
        return f"{text}. No cheaper head is within a standard error of it, or within 2 %."
    behind = (best.mean - cheapest.mean) * _scale(best)
    return f"{text}. {cheapest.variant.label} is {behind:.2f} behind, with {_per_head(cheapest)} GMACs."


def table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the table of variants."""
    cells = []
    for row in rows:
        scale = _scale(row)
        spread = "" if row.spread is None else f"{row.spread * scale:.2f}"
        by_seed = " / ".join(f"{score * scale:.2f}" for score in row.scores) or "not finished"
        mean = f"{row.mean * scale:.2f}" if row.scores else ""
        seconds = f"{row.seconds:.0f}" if row.scores else ""
        cost = [f"{row.cost.parameters / 1e6:.2f}", f"{row.cost.gmacs:.1f}", _per_head(row)]
        cells.append([row.variant.label, mean, spread, *cost, seconds, by_seed])
    score = next((_score_name(row) for row in rows if row.scores), "score")
    return [score, "mean", "spread", "params, M", "GMACs", "per head", "seconds", "by seed"], cells


def plot_cost(rows: Sequence[Row]) -> Figure:
    """Score against trainable parameters, multiply-adds and training time."""
    from matplotlib.figure import Figure
    from matplotlib.transforms import ScaledTranslation

    figure = Figure(figsize=(12.5, 4.2), layout="constrained")
    axes = figure.subplots(1, 3, sharey=True)
    beside = ScaledTranslation(7 / 72, 0, figure.dpi_scale_trans)  # in inches, so that the bar does not hide the runs
    costs: list[tuple[str, Any]] = [
        ("trainable parameters, M", lambda row: row.cost.parameters / 1e6),
        ("GMACs per additional head", lambda row: row.cost.head_gmacs),
        ("seconds of training", lambda row: row.seconds),
    ]
    few = len(rows) <= len(COLORS)  # one color per variant
    for axis, (label, cost) in zip(axes, costs, strict=True):
        middle = (min(map(cost, rows)) + max(map(cost, rows))) / 2
        for index, row in enumerate(rows):
            color, scale, at = COLORS[index % len(COLORS)], _scale(row), cost(row)
            scores, name = [score * scale for score in row.scores], row.variant.label
            runs = axis.transData + beside
            axis.plot([at] * len(scores), scores, "x", color=color, alpha=0.7, markersize=4, transform=runs)
            bar = (row.spread or 0) * scale
            axis.errorbar(at, row.mean * scale, yerr=bar, fmt="o", color=color, capsize=3, label=name)
            if not few:
                side = {"ha": "left", "xytext": (5, 4)} if at <= middle else {"ha": "right", "xytext": (-5, 4)}
                axis.annotate(name, (at, row.mean * scale), textcoords="offset points", fontsize=7, **side)
        axis.set_xlabel(label)
        axis.grid(alpha=0.25)
        axis.margins(x=0.1 if few else 0.25, y=0.15)
    if few:
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3, frameon=False)
    axes[0].set_ylabel(_score_name(rows[0]))
    return figure


def plot_curves(rows: Sequence[Row]) -> Figure:
    """Score over steps and training time, with a line per run, colored by variant."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.4), layout="constrained")
    over_steps, over_seconds = figure.subplots(1, 2, sharey=True)
    for number, row in enumerate(rows):
        color, label = COLORS[number % len(COLORS)], row.variant.label
        for each in row.by_seed.values():
            steps, seconds, scores = zip(*progress(each), strict=True)
            scaled = [score * _scale(row) for score in scores]
            for axes, values in ((over_steps, steps), (over_seconds, seconds)):
                axes.plot(values, scaled, ".-", color=color, label=label, linewidth=1.2)
            label = "_"  # one entry per variant
    over_steps.set_xlabel("steps")
    over_seconds.set_xlabel("seconds of training")
    over_steps.set_ylabel(_score_name(rows[0]))
    over_seconds.legend(frameon=False, fontsize=8)
    return figure


def progress(outcome: Outcome) -> list[tuple[int, float, float]]:
    """Step, training time in seconds and score of each evaluation in ``metrics.jsonl`` of a run.

    Times are interpolated between the logged training steps, starting at 0 seconds.
    """
    score = outcome.trial.config.task.scores[outcome.score_name]
    scores: dict[int, float] = {}
    seconds = {0: 0.0}
    run = RunFolder(outcome.trial.folder)
    for row in run.read_metrics():
        if row.get("seconds") is not None:
            seconds[row["step"]] = row["seconds"]
        if "eval" in row:
            scores[row["step"]] = score.sign * metric(run, row, score.metric)
    if not scores:
        raise RunError(f"{run.metrics_file}: it contains no evaluation. Train the run again in another folder.")
    times = np.interp(list(scores), list(seconds), list(seconds.values())).tolist()
    return [(step, time, score) for (step, score), time in zip(scores.items(), times, strict=True)]


def metric(run: RunFolder, row: dict[str, Any], name: str) -> float:
    """A metric of an evaluation; NaN if it was not finite.

    Raises:
        RunError: The evaluation does not have it.
    """
    value = row["eval"].get(name, "")
    where = f"{run.metrics_file}: step {row['step']}: eval: {name}"
    return math.nan if value is None else real_number(value, where, error=RunError)


def plot_grid(rows: Sequence[Row]) -> Figure:
    """Fig. 11: score over K_t with a line per K_p, and over K_p with a line per K_t; line styles show selections."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10.5, 4.2), layout="constrained")
    for axis, (over, apart) in zip(figure.subplots(1, 2, sharey=True), (("K_t", "K_p"), ("K_p", "K_t")), strict=True):
        lines: dict[tuple[int, str], list[Row]] = {}
        for row in rows:
            lines.setdefault((_symbol(row, apart), _selection(row)), []).append(row)
        values = sorted({value for value, _ in lines})
        selections = list(dict.fromkeys(selection for _, selection in lines))
        positions = sorted({_symbol(row, over) for row in rows})
        step = 0.02 * max(1, positions[-1] - positions[0])  # lines are shifted, so that their bars do not overlap
        for place, ((value, selection), members) in enumerate(sorted(lines.items())):
            shift = (place - (len(lines) - 1) / 2) * step
            ordered = sorted(members, key=lambda row: _symbol(row, over))
            axis.errorbar(
                [_symbol(row, over) + shift for row in ordered],
                [row.mean * _scale(row) for row in ordered],
                yerr=[(row.spread or 0) * _scale(row) for row in ordered],
                color=COLORS[values.index(value) % len(COLORS)],
                linestyle=("-", "--", ":", "-.")[selections.index(selection) % 4],
                marker="o",
                capsize=3,
                label=f"{apart} = {value}, {selection}",
            )
        axis.set_xticks(positions)
        axis.set_xlabel({"K_t": "K_t, copied blocks", "K_p": "K_p, prior layers"}[over])
        axis.grid(alpha=0.25)
        axis.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3, frameon=False)
        axis.set_ylabel(_score_name(rows[0]))
    return figure


def _per_head(row: Row) -> str:
    """Multiply-adds of one more head; those of a linear layer are next to nothing."""
    return f"{row.cost.head_gmacs:.3g}" if row.cost.head_gmacs >= 0.001 else "< 0.001"


def _best_row(rows: Sequence[Row]) -> Row:
    return max(rows, key=lambda row: -math.inf if math.isnan(row.mean) else row.mean)


def _best(rows: Sequence[Row]) -> list[tuple[str, str]]:
    best = _best_row(rows)
    runs = sum(len(row.scores) for row in rows)
    return [
        (
            f"{best.mean * _scale(best):.2f}",
            f"best mean {_score_name(best)}: {best.variant.label}",
        ),
        (f"{best.cost.parameters / 1e6:.2f} M", "its trainable parameters"),
        (str(runs), "finished runs"),
    ]


def _run_table(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    cells = [
        [
            f"{row.variant.label}, seed {seed}" + (f": {each.chosen_layers}" if each.chosen_layers else ""),
            f"{each.score * _scale(row):.2f}",
            f"{each.best_score * _scale(row):.2f}",
            str(each.steps),
            f"{each.seconds:.0f}",
            str(each.trial.folder),
        ]
        for row in rows
        for seed, each in row.by_seed.items()
    ]
    return ["run", "final score", "best score", "steps", "seconds", "folder"], cells


def _score_name(row: Row) -> str:
    """Name and unit of the score."""
    score = _score(row)
    return f"{score.title}{' with a minus sign' * (score.sign < 0)}, {score.unit}".rstrip(", ")


def _scale(row: Row) -> float:
    return _score(row).scale if row.by_seed else 1.0  # no scores


def _score(row: Row) -> Score:
    return row.config.task.scores[next(iter(row.by_seed.values())).score_name]


def _symbol(row: Row, symbol: str) -> int:
    split = split_settings(row.config.method, "a grid")
    return split.num_tuned_layers if symbol == "K_t" else split.num_prior_layers


def _selection(row: Row) -> str:
    selection = split_settings(row.config.method, "a grid").selection
    return "least alike" if selection == "explicit" else selection
