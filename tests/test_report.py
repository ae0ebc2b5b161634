"""Pages: content is escaped."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
from PIL import Image

from vitsplit.report import Page
from vitsplit.tasks.segmentation.report import paint

VOID = {"meta", "img", "br", "link"}


class Balance(HTMLParser):
    """Checks that every tag is closed in order, and collects text and pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.pictures: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.open.append(tag)
        self.pictures += [value for name, value in attributes if tag == "img" and name == "src" and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def parsed(page: Page, folder: Path) -> Balance:
    parser = Balance()
    parser.feed(page.write(folder).read_text(encoding="utf-8"))
    parser.close()
    assert parser.open == []
    return parser


def test_markup_in_names_is_escaped(tmp_path: Path) -> None:
    markup = '<script>"a" & b</script>'
    page = Page(markup, markup)
    page.heading(markup)
    page.text(f"{markup} `{markup}`")
    page.table([markup], [[markup]])
    page.figures([(markup, markup)])
    page.legend([(markup, (1, 2, 3))])
    page.code(markup)
    page.pictures([(Image.new("RGB", (4, 3)), markup)])
    page.picture_beside_table(Image.new("RGB", (4, 3)), markup, [markup], [[markup]])
    result = parsed(page, tmp_path / "sub")
    assert result.text.count(markup) == 16
    assert "<script" not in (tmp_path / "sub" / "index.html").read_text(encoding="utf-8")


def test_masks_in_a_page_keep_their_exact_colors(tmp_path: Path) -> None:
    mask = np.array([[0, 1], [255, 1]], dtype=np.uint8)
    page = Page("masks")
    page.pictures([(paint(mask, ((10, 20, 30), (200, 100, 50))), "mask")])
    (source,) = parsed(page, tmp_path).pictures
    kind, _, data = source.partition(";base64,")
    assert kind == "data:image/png"
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))
    assert picture.tolist() == [[[10, 20, 30], [200, 100, 50]], [[0, 0, 0], [200, 100, 50]]]
