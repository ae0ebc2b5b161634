"""Which exports work: every family of backbones, format, precision and task, with the difference from the model.

Small backbones and heads of random weights are exported and run in their own runtime, those of each backbone in a
process of its own, and ``docs/export.md`` receives the table::

    make export-matrix      # about a quarter of an hour on two cores

Finished cases are kept in ``export_matrix.json`` beside the page, so that a stopped run is resumed by the same command;
``--only KIND`` measures one backbone. The page is written when all cases are there, and the file then removed.

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
from dataclasses import replace
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

    from vitsplit.exporting.formats import open_format, open_graphs, trace
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
    from vitsplit.exporting.writing import write_graphs

    predictor = tiny_predictor(kind, tasks, depth=3)
    operators: dict[str, Any] = {}
    for name, precision in GRAPHS:
        written: Any = open_format(name)  # type: ignore[arg-type]
        deform = written.deforms[0]
        try:
            if deform not in operators:
                graph = ExportGraph(predictor, deform=deform).eval()
                program = trace(graph, None)
                sizes = sizes_of(graph, None, program.smallest_side)
                operators[deform] = graph, program, references(predictor, graph, find_images(None), sizes)
            graph, program, expected = operators[deform]
            with tempfile.TemporaryDirectory() as folder:
                settings = written.settings(precision)
                open_all = partial(open_graphs, written, settings=settings)

                def errors(
                    graphs: Any, open_all: Any = open_all, graph: Any = graph, expected: Any = expected
                ) -> list[Found]:
                    outputs = [replace(each, steps={}) for each in graphs]
                    return compare(open_all(outputs), expected, graph, described(predictor))

                limits = LIMITS[precision]  # type: ignore[index]

                def far(graphs: Any, errors: Any = errors, limits: Any = limits) -> float:
                    return distance(errors(graphs), limits)

                graphs, _ = write_graphs(written, [program], Path(folder), precision, far)  # type: ignore[arg-type]
                worst = summary(errors(graphs))
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
    parser.add_argument("--only", choices=FAMILIES, metavar="KIND", help="measure one backbone")
    parser.add_argument("--out", type=Path, default=DOCS, help="the page with the marks of the table")
    arguments = parser.parse_args()
    if arguments.case:
        kind, tasks = arguments.case
        for graph in measure(kind, tuple(tasks.split(","))):
            print(json.dumps(graph), flush=True)
        return
    kept = arguments.out.with_name("export_matrix.json")
    rows: dict[str, dict[str, Found]] = json.loads(kept.read_text(encoding="utf-8")) if kept.is_file() else {}
    for kind in FAMILIES if arguments.only is None else [arguments.only]:
        for tasks in TASKS:
            key = " ".join([kind, *tasks])
            if key not in rows:
                rows[key] = measure_in_process(kind, tasks)
                for name, each in rows[key].items():
                    print(key, name, each.get("error") or each["beyond"] or "works", flush=True)
                kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    found = {(kind, tasks): rows.get(" ".join([kind, *tasks])) for kind in FAMILIES for tasks in TASKS}
    complete = {case: row for case, row in found.items() if row is not None}
    if len(complete) < len(found):
        print(f"{len(complete)} of {len(found)} cases are in {kept}; run again for the others")
        return
    before, _, rest = arguments.out.read_text(encoding="utf-8").partition(BEGIN)
    _, _, after = rest.partition(END)
    arguments.out.write_text(f"{before}{BEGIN}\n{table(complete)}\n{END}{after}", encoding="utf-8")
    kept.unlink()


if __name__ == "__main__":
    main()
