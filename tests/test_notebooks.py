"""The notebooks of the documentation run, here on few small scenes with a tiny backbone of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import nbformat
import pytest
from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient

from small_run import SMALL_RUN

NOTEBOOKS = sorted((Path(__file__).parents[1] / "docs" / "notebooks").glob("*.md"))

# Replaces what the cell tagged `parameters` sets.
SMALL: dict[str, Any] = {"size": (48, 64), "num_scenes": {"train": 6, "val": 3}, "settings": SMALL_RUN}
OWN: dict[str, dict[str, Any]] = {
    "detection": {"settings": SMALL_RUN | {"image_scale": (64, 48), "train_sides": (32, 48)}},
    "several-tasks": {"minutes": 0.01},
}


def notebook(name: str) -> nbformat.NotebookNode:
    """The notebook with small parameters."""
    (path,) = (path for path in NOTEBOOKS if path.stem == name)
    found = read_myst_markdown_notebook(path.read_text(encoding="utf-8"))
    (parameters,) = (cell for cell in found.cells if "parameters" in cell.metadata.get("tags", ()))
    given: dict[str, Any] = {}
    exec(parameters.source, given)
    small = SMALL | OWN.get(name, {})
    assert small.keys() == given.keys() - {"__builtins__"}
    parameters.source = "\n".join(f"{name} = {value!r}" for name, value in small.items())
    return found


@pytest.fixture
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.mark.usefixtures("closed_figures")
@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS if path.stem != "segmentation"])
def test_every_cell_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "agg")
    names: dict[str, Any] = {"__name__": name}
    for number, cell in enumerate(notebook(name).cells):
        # Cells without visible input pass pictures to the gallery.
        if cell.cell_type == "code" and "remove-input" not in cell.metadata.get("tags", ()):
            exec(compile(cell.source, f"{name}, cell {number}", "exec"), names)


@pytest.mark.slow
def test_outputs_in_a_kernel(tmp_path: Path) -> None:
    """Training prints plain lines, without HTML and control characters; pictures are shown."""
    found = notebook("segmentation")
    NotebookClient(found, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = {cell.source: cell.outputs for cell in found.cells if cell.cell_type == "code"}
    (training,) = (several for source, several in outputs.items() if "vitsplit.train(" in source)
    assert {output.output_type for output in training} == {"stream"}
    printed = "".join(output.text for output in training if output.name == "stdout")
    assert f"step {SMALL_RUN['steps']}/{SMALL_RUN['steps']}" in printed and "\x1b" not in printed
    pictures = [output for several in outputs.values() for output in several if "image/png" in output.get("data", {})]
    # The curve of the loss, and the picture of the gallery, which is not shown twice.
    assert [output.metadata.get("scrapbook", {}).get("name") for output in pictures] == [None, "segmentation"]
