"""Measures the page of ``vitsplit serve``: from opening a photo to its first overlay, beyond the time of the model.

    vitsplit serve runs/rooms runs/depth --port 8000
    python benchmarks/serve_page.py photo.jpg --url http://127.0.0.1:8000

The photo is enlarged to the size of a camera's, and opened in Chromium several times. Time runs from the moment that
the browser has the file to the first overlay on its canvas; the server's ``model_ms`` is subtracted. The bound is 2
seconds for 12 megapixels. One JSON object is printed: milliseconds of all openings, their median, and the stages that
the page shows.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
from pathlib import Path

from PIL import Image
from playwright.sync_api import sync_playwright

LAST_OVERLAY = """() => { const { startTime, detail } = performance.getEntriesByName("vitsplit:overlay")[0];
  performance.clearMarks("vitsplit:overlay"); return { total: startTime - detail.opened, model: detail.model_ms }; }"""
STAGES = """() => Object.fromEntries([...document.querySelectorAll("#pass .stages div")]
  .map((node) => [...node.children].map((child) => child.innerText)))"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photo", type=Path)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--size", type=int, nargs=2, default=(4000, 3000), help="width and height of the photo")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--chromium", default=shutil.which("chromium"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        large = Path(folder) / "photo.jpg"
        with Image.open(options.photo) as image:
            image.convert("RGB").resize(options.size, Image.Resampling.BICUBIC).save(large, quality=92)
        browser = driver.chromium.launch(executable_path=options.chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.goto(options.url)
        page.locator("#offers li").first.wait_for()
        beyond, models = [], []
        for _ in range(options.repeats + 1):
            page.locator("#file").set_input_files(large)
            page.locator("#pass").wait_for(state="hidden")
            page.locator("#pass").wait_for(timeout=120_000)
            found = page.evaluate(LAST_OVERLAY)
            beyond.append(round(found["total"] - found["model"]))
            models.append(round(found["model"]))
        print(
            json.dumps(
                {
                    "size": options.size,
                    "photo_bytes": large.stat().st_size,
                    "first_ms": beyond[0],
                    "beyond_model_ms": beyond[1:],
                    "median_ms": statistics.median(beyond[1:]),
                    "model_ms": models[1:],
                    "last_stages": page.evaluate(STAGES),
                }
            )
        )
        browser.close()


if __name__ == "__main__":
    main()
