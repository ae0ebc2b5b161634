"""Which exports work: every family of backbones, format, precision and task, with the difference from the model.

Small backbones and heads of random weights are exported and run in their own runtime, those of each backbone in a
process of its own, and ``docs/export.md`` receives the table::

    make export-matrix      # about a quarter of an hour on two cores

Random heads are the hardest case for half precision: their scores are close to each other, so that rounding changes
more classes than in a trained head.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

FAMILIES = {
    "dinov2-small": "plain",
    "dinov2-small-reg": "registers",
    "eva02-large": "rotary (EVA-02)",
    "dinov3-small": "rotary (DINOv3)",
    "sam-base": "SAM",
}
TASKS = (("segmentation", "depth"), ("detection",))
GRAPHS = (
    ("onnx", "fp32"),
    ("onnx", "fp16"),
    ("onnx", "int8"),
    ("openvino", "fp32"),
    ("openvino", "fp16"),
    ("openvino", "bf16"),
    ("pt2", "fp32"),
)
TIMEOUT = 900
"""Seconds for all graphs of a backbone and a group of tasks."""
DOCS = Path(__file__).parent.parent / "docs" / "export.md"
BEGIN, END = "<!-- matrix -->", "<!-- end of matrix -->"
Found = dict[str, Any]
"""The worst differences of each output, and the reason of those beyond the limit; or an error."""


def measure(kind: str, tasks: tuple[str, ...]) -> Iterator[tuple[str, Found]]:
    """Every graph of a backbone and of tasks in one graph, by format and precision."""
    from tiny_predictor import tiny_predictor  # of tests/exporting

    from vitsplit.exporting.formats import open_format, trace
    from vitsplit.exporting.graph import ExportGraph
    from vitsplit.exporting.parity import (
        LIMITS,
        compare,
        described,
        distance,
        exceeds,
        find_images,
        references,
        sizes_of,
        summary,
    )
    from vitsplit.exporting.writing import write_graph

    predictor = tiny_predictor(kind, tasks, depth=3)
    expected_of: dict[str, Any] = {}
    for name, precision in GRAPHS:
        written: Any = open_format(name)  # type: ignore[arg-type]
        deform = written.deforms[0]
        try:
            graph = ExportGraph(predictor, deform=deform).eval()
            program = trace(graph, None)  # anew for each graph: PyTorch cannot write one with detection twice
            if deform not in expected_of:
                sizes = sizes_of(graph, None, program.smallest_side)
                expected_of[deform] = references(predictor, graph, find_images(None), sizes)
            expected = expected_of[deform]
            with tempfile.TemporaryDirectory() as folder:
                open_graph = partial(written.open, Path(folder), graph.outputs, written.settings(precision))

                def errors(open_graph: Any = open_graph, graph: Any = graph, expected: Any = expected) -> list[Found]:
                    return compare(open_graph(), expected, graph, described(predictor))

                limits = LIMITS[precision]  # type: ignore[index]

                def far(errors: Any = errors, limits: Any = limits) -> float:
                    return distance(errors(), limits)

                write_graph(written, program, Path(folder), precision, far)  # type: ignore[arg-type]
                worst = summary(errors())
        except Exception as error:  # an exporter's or a runtime's own: to be seen in the table
            yield f"{name} {precision}", {"error": f"{type(error).__name__}: {error}"}
            continue
        beyond = {output: exceeds(each, LIMITS[precision]) for output, each in worst.items()}  # type: ignore[index]
        yield f"{name} {precision}", {"worst": worst, "beyond": [output for output, why in beyond.items() if why]}


def measure_in_process(kind: str, tasks: tuple[str, ...]) -> dict[str, Found]:
    """``measure``, within a time limit."""
    command = [sys.executable, __file__, "--case", kind, ",".join(tasks)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT)
        output, reason = done.stdout, (done.stderr.strip().splitlines() or ["no message"])[-1]
    except subprocess.TimeoutExpired as error:
        output, reason = bytes(error.stdout or b"").decode(), f"not finished in {TIMEOUT // 60} minutes"
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("[")]
    return {f"{name} {precision}": {"error": reason} for name, precision in GRAPHS} | dict(lines)


def cell(task: str, found: Found) -> str:
    """The figure of a task in one graph; in parentheses where it is beyond the limit."""
    if "error" in found:
        return f"refused: {' '.join(found['error'].split())[:80].replace('|', '/')}"
    output = {"segmentation": "segmentation.classes", "depth": "depth.depth", "detection": "detection.boxes"}[task]
    errors = found["worst"][output]
    text = f"{100 * errors['agreement']:.2f} %" if "agreement" in errors else f"{100 * errors['abs_rel']:.4f} %"
    refused = any(name.startswith(f"{task}.") for name in found["beyond"])
    return f"({text})" if refused else text


def table(found: Mapping[tuple[str, tuple[str, ...]], dict[str, Found]]) -> str:
    """The table, with one row per family and task."""
    head = ["backbone", "task", *(f"{name} {precision}" for name, precision in GRAPHS)]
    rows = [head, ["---"] * len(head)]
    for kind, family in FAMILIES.items():
        for tasks in TASKS:
            for task in tasks:
                cells = [cell(task, found[kind, tasks][f"{name} {of}"]) for name, of in GRAPHS]
                rows.append([family, task, *cells])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=2, metavar=("KIND", "TASKS"), help="measure only one, and print it as JSON")
    parser.add_argument("--out", type=Path, default=DOCS, help="the page with the marks of the table")
    arguments = parser.parse_args()
    if arguments.case:
        kind, tasks = arguments.case
        for graph in measure(kind, tuple(tasks.split(","))):
            print(json.dumps(graph), flush=True)
        return
    found: dict[tuple[str, tuple[str, ...]], dict[str, Found]] = {}
    for kind in FAMILIES:
        for tasks in TASKS:
            found[kind, tasks] = measure_in_process(kind, tasks)
            for name, each in found[kind, tasks].items():
                print(kind, *tasks, name, each.get("error") or each["beyond"] or "works", flush=True)
    before, _, rest = arguments.out.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    arguments.out.write_text(f"{before}{BEGIN}\n{table(found)}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
