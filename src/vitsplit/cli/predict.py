"""``vitsplit predict RUN IMAGES``: run a bundle on images."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import track

DESCRIPTION = """\
Runs a bundle on images or folders of images. For segmentation it writes, per image, NAME_mask.png (class ids, with a
palette) and NAME_overlay.jpg. Images that cannot be read are listed at the end, and the exit status is then 1.

  vitsplit predict runs/first photo.jpg more_photos/ --out predictions
"""


def main(argv: list[str]) -> int:
    """Runs the verb."""
    parser = argparse.ArgumentParser(
        prog="vitsplit predict", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", metavar="RUN", help="a run folder (its best bundle) or a bundle folder")
    parser.add_argument("images", metavar="IMAGE", nargs="+", help="image files, or folders of them")
    parser.add_argument("--out", metavar="FOLDER", required=True, help="where to write")
    parser.add_argument("--weights", metavar="PATH", help="weights of the backbone, where they cannot be fetched")
    parser.add_argument("--device", help="where to compute; default: the first GPU, else the processor")
    parser.add_argument(
        "--precision",
        choices=["auto", "fp32", "bf16", "fp16"],
        help="default: fp32 if the run computed in it, else auto",
    )
    options = parser.parse_args(argv)

    from vitsplit import api
    from vitsplit.errors import DataError

    files = _image_files(options.images)
    predictor = api.load(options.run, weights=options.weights, device=options.device, precision=options.precision)
    failed: list[str] = []
    for file, name in track(files, "predicting", console=Console(stderr=True), transient=True):
        try:
            prediction = predictor.predict(file)
        except DataError as error:
            failed.append(str(error))
            continue
        prediction.save(options.out, name)
    print(f"{len(files) - len(failed)} of {len(files)} images: {options.out}")
    for message in failed:
        print(f"skipped: {message}", file=sys.stderr)
    return 1 if failed else 0


def _image_files(paths: list[str]) -> list[tuple[Path, str]]:
    """Files with the name that their results get; folders are searched, and names stay unique."""
    from vitsplit.data.images import IMAGE_SUFFIXES
    from vitsplit.errors import DataError

    found: list[tuple[Path, str]] = []
    for text in paths:
        path = Path(text)
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*") if file.suffix.lower() in IMAGE_SUFFIXES)
            if not inside:
                raise DataError(f"{path}: no images in this folder. Name image files, or a folder that holds some.")
            found += [(file, str(file.relative_to(path).with_suffix(""))) for file in inside]
        else:
            found.append((path, path.stem))
    taken: dict[str, Path] = {}
    for file, name in found:
        if name in taken:
            raise DataError(f"{file} and {taken[name]} would both be written as '{name}'. Use two output folders.")
        taken[name] = file
    return found
