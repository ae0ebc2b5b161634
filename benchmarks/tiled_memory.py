"""Peak memory and time of ``vitsplit predict`` on an image that does not fit in memory.

    python benchmarks/tiled_memory.py --backbone vit_tiny_patch16_224
    python benchmarks/tiled_memory.py --height 2000

The image (generated scenes, side by side, with noise) is written strip by strip. The bundle has random weights and 39
classes: memory and time do not depend on the weights. The command runs in a new process, whose peak resident memory is
measured.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from pathlib import Path

import pyvips

from vitsplit.analysis.processes import in_new_process
from vitsplit.backbone import load_backbone
from vitsplit.bundle import save_bundle
from vitsplit.cli.main import main as run_vitsplit
from vitsplit.data.classes import ClassList
from vitsplit.engine.override import override
from vitsplit.memory import peak_resident_bytes
from vitsplit.model import build_head
from vitsplit.recipes import recipe
from vitsplit.sample.scene import generate_scene
from vitsplit.tasks.segmentation.task import SegmentationTask


def write_image(path: Path, height: int, width: int) -> None:
    """A TIFF in tiles or a PNG, by its name."""
    scenes = [pyvips.Image.new_from_array(generate_scene(seed, (512, 512)).image_HWC) for seed in range(4)]
    four = pyvips.Image.arrayjoin(scenes, across=2)
    image = four.replicate(-(-width // four.width), -(-height // four.height)).crop(0, 0, width, height)
    image = (image + pyvips.Image.gaussnoise(width, height, mean=0, sigma=4)).cast("uchar").copy(interpretation="srgb")
    if path.suffix == ".tif":
        image.tiffsave(str(path), tile=True, tile_width=256, tile_height=256, compression="deflate", bigtiff=True)
    else:
        image.pngsave(str(path), compression=1)


def write_bundle(folder: Path, backbone_name: str, num_classes: int) -> None:
    config = override(recipe("laptop-segmentation"), {"backbone": backbone_name, "random_weights": True})
    task = SegmentationTask(config.task, ClassList(tuple(f"class {index}" for index in range(num_classes))))
    backbone = load_backbone(backbone_name, random_weights=True)
    model = build_head(config, backbone, task)
    save_bundle(folder, config=config, task=task, backbone=backbone, head=model, metrics={})


def predict(words: list[str]) -> tuple[int, float, float]:
    """Runs a verb; the peak of this process's resident set in bytes, and its seconds by the clock and of CPU."""
    start, cpu_start = time.perf_counter(), time.process_time()
    if status := run_vitsplit(words):
        sys.exit(f"vitsplit {words[0]} ended with status {status}")
    return peak_resident_bytes(), time.perf_counter() - start, time.process_time() - cpu_start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--height", type=int, default=20_000)
    parser.add_argument("--width", type=int, default=20_000)
    parser.add_argument("--format", choices=["tif", "png"], default="tif")
    parser.add_argument("--backbone", default="dinov2-small")
    parser.add_argument("--classes", type=int, default=39)
    parser.add_argument("predict_flags", nargs="*", help="after --: flags of vitsplit predict")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        image, bundle, out = (Path(folder) / name for name in (f"image.{options.format}", "bundle", "out"))
        write_image(image, options.height, options.width)
        write_bundle(bundle, options.backbone, options.classes)
        verb = ["predict", str(bundle), str(image), "--out", str(out), "--tile", "252", "336", *options.predict_flags]
        peak, seconds, cpu_seconds = in_new_process(predict, verb)
        mask = pyvips.Image.new_from_file(str(next(out.glob("*_mask.*"))))
        assert (mask.height, mask.width) == (options.height, options.width)
        peak_gb = peak / 1e9
        print(
            f"{options.height}x{options.width} pixels, {image.stat().st_size / 1e9:.2f} GB on disk, {options.backbone}"
        )
        print(f"  peak memory {peak_gb:.2f} GB, {seconds:.0f} s ({cpu_seconds:.0f} s of CPU)")
        print(json.dumps({"peak_gb": peak_gb, "seconds": seconds}))


if __name__ == "__main__":
    main()
