"""The demo with random weights and few steps, without quality."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from PIL import Image

from vitsplit.cli.main import main

QUICK = ["--random-weights", "--backbone", "vit_tiny_patch16_224", "--train-scenes", "4", "--val-scenes", "2",
         "--size", "48", "64", "--steps", "4", "--batch-size", "2"]  # fmt: skip


def test_demo_writes_one_self_contained_page(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "a folder with a name that is long enough to be wrapped by a terminal of eighty columns" / "demo"
    assert main(["demo", *QUICK, "--out", str(out)]) == 0
    output = capsys.readouterr().out
    last_line = output.splitlines()[-1]
    assert last_line == str(out / "index.html")
    text = Path(last_line).read_text(encoding="utf-8")
    # The page is self-contained: images are embedded, and there are no other references.
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert sources and all(source.startswith(("data:", "#")) for source in sources)
    assert all(text.count(f'alt="{task}, prediction"') == 2 for task in ("classes", "depth"))
    assert "<svg" in text and "mIoU" in text and "RMSE" in text
    with Image.open(out / "picture.jpg") as picture:
        assert picture.size == (5 * 64 + 4 * 6, 2 * (48 + 6) - 6)
    # Two scenes in the picture and two in the page: one pass of the backbone each, for both tasks.
    assert "4 passes at 48x64 for segmentation and depth" in output
    assert main(["demo", *QUICK, "--out", str(out)]) == 2
    assert "already holds a demo" in capsys.readouterr().err


def test_fallback_backbone_without_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitsplit import demo
    from vitsplit.backbone.hub import HubUnavailableError
    from vitsplit.demo_config import DemoConfig
    from vitsplit.errors import WeightsError

    def unreachable(name: str) -> None:
        raise HubUnavailableError(name)

    def damaged(name: str) -> None:
        raise WeightsError("the cached file is damaged")

    output: list[str] = []
    monkeypatch.setattr(demo, "load_backbone", unreachable)
    assert demo._choose_backbone(DemoConfig(), output.append) == "dinov2-small-focus"
    assert "dinov2-small-focus" in output[0] and "dinov2-small " in output[0]
    monkeypatch.setattr(demo, "load_backbone", lambda name: None)
    assert demo._choose_backbone(DemoConfig(), output.append) == "dinov2-small"
    # A damaged cache is an error, not a reason for the fallback.
    monkeypatch.setattr(demo, "load_backbone", damaged)
    with pytest.raises(WeightsError, match="damaged"):
        demo._choose_backbone(DemoConfig(), output.append)


def test_a_second_demo_uses_a_new_folder(tmp_path: Path) -> None:
    from vitsplit.folder_lock import hold_free_folder

    for name in ("demo", "demo-2", "demo-3"):
        with hold_free_folder(tmp_path / "demo") as folder:
            assert folder == tmp_path / name
            (folder / "scenes").mkdir()
