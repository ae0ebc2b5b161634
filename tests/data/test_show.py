"""Reports in the terminal: every task shows its own columns and tables, and none of another task."""

import os

from rich.console import Console

from vitsplit.data.check import ClassCount, Finding, Report, SplitReport
from vitsplit.data.show import describe_sizes, show_report


def shown(report):
    with open(os.devnull, "w") as nowhere:  # noqa: PTH123
        console = Console(record=True, width=120, file=nowhere)
        show_report(report, console)
        return console.export_text()


def row(text, name):
    """What follows a name on the only line that begins with it."""
    words = name.split()
    (rest,) = [line.split()[len(words) :] for line in text.splitlines() if line.split()[: len(words)] == words]
    return rest


def test_depth():
    train = SplitReport(2, [(10, 8, 2)], facts={"least depth, m": 0.70588, "maps": 2, "largest depth, m": 25400.4})
    val = SplitReport(1, [(10, 8, 1)], facts={"least depth, m": 1.0, "[b]unit": "feet"})
    output = shown(Report("set", "depth", "folder", splits={"train": train, "val": val}))
    assert row(output, "least depth, m") == ["0.7059", "1"] and row(output, "largest depth, m") == ["25400", "none"]
    assert row(output, "maps") == ["2", "none"] and row(output, "[b]unit") == ["none", "feet"]
    assert "classes" not in output and "ignored" not in output and "ready: 0 errors, 0 warnings" in output


def test_segmentation():
    split = SplitReport(2, [(10, 8, 2)], {"gray": 1}, [ClassCount("wall", 75, 0.75, 2), ClassCount("bed", 0, 0.0, 0)])
    split.ignored_share = 0.125
    output = shown(Report("set", "segmentation", "folder", splits={"val": split}))
    assert row(output, "0 wall") == ["75.00%", "2"] and row(output, "1 bed") == ["never", "0"]
    assert "fraction of labeled pixels" in output and "val pixels" in output
    assert row(output, "val 2") == ["all", "10x8", "1", "gray", "12.5%"] and "figures" not in output


def test_detection():
    classes = [ClassCount("cell", 9, 0.9, 2), ClassCount("[red]", 1, 0.1, 1)]
    split = SplitReport(2, [(10, 8, 2)], classes=classes, facts={"objects": 10, "crowds": 0})
    output = shown(Report("set", "detection", "coco", "objects", splits={"train": split}))
    assert "train objects" in output and "pixels" not in output
    assert (
        row(output, "1 [red]") == ["1", "1"] and row(output, "0 cell") == ["9", "2"] and row(output, "crowds") == ["0"]
    )


def test_findings_without_splits_are_shown():
    findings = [Finding("error", "split train cannot be opened", "set", "set: nothing there. Add images.")]
    output = shown(Report("set", "depth", "folder", findings=findings))
    assert "set: nothing there. Add images." in output and "not ready: 1 error, 0 warnings" in output
    assert "images   sizes" not in output


def test_image_sizes_are_summarized():
    assert describe_sizes(SplitReport(1)) == "none could be read"
    several = describe_sizes(SplitReport(3, [(10, 8, 2), (30, 2, 1)]))
    assert "width 10 / 10 / 30, height 2 / 8 / 8" in several and "10x8 (2), 30x2 (1)" in several
