"""Prediction time of an exported segmentation head against EoMT and a fine-tuned linear head, in the same runtime.

    vitsplit export runs/rooms --out ours --size 294 294 --format onnx openvino
    vitsplit export runs/linear --out linear --size 294 294 --format onnx openvino    # --method full-finetune
    python benchmarks/runtime_rivals.py ours linear --size 294

All are DINOv2-S with patches of 14 pixels. EoMT-S is transformers' ``EomtForUniversalSegmentation`` with random weights
(the time does not depend on them), three blocks with 100 queries, and masked attention off, as after its training; its
graph ends in a class per pixel, as ours. It needs a square image. The graphs run in turns, in one process.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor, nn
from transformers import EomtConfig, EomtForUniversalSegmentation

from vitsplit.analysis.bench.report import where
from vitsplit.analysis.bench.runtimes import time_call
from vitsplit.analysis.measure import Spread, describe_machine, paired_ratio, run_interleaved
from vitsplit.report import screen_table
from vitsplit.runtime.card import read_card
from vitsplit.runtime.sessions import import_openvino

PATCH = 14


class EomtClasses(nn.Module):
    """EoMT from uint8 pixels to a class per pixel.

    Args:
        side: Height and width of the image in pixels.
        num_classes: Number of classes.
    """

    def __init__(self, side: int, num_classes: int) -> None:
        super().__init__()
        config = EomtConfig(
            hidden_size=384,
            num_hidden_layers=12,
            num_attention_heads=6,
            num_blocks=3,
            num_queries=100,
            image_size=side,
            patch_size=PATCH,
            num_labels=num_classes,
        )
        self.model: Any = EomtForUniversalSegmentation(config).eval()
        # A buffer of zeros after training; as numbers, since an exporter cannot branch on a tensor.
        del self.model.attn_mask_probs
        self.model.attn_mask_probs = [0.0] * config.num_blocks

    def forward(self, image_BCHW: Tensor) -> Tensor:
        """``classes_BHW``, uint8."""
        found = self.model((image_BCHW.float() - 116.0) / 58.0)
        class_BQK = found.class_queries_logits.softmax(-1)[..., :-1]
        mask_BQhw = found.masks_queries_logits.sigmoid()
        score_BKhw = torch.einsum("bqk,bqhw->bkhw", class_BQK, mask_BQhw)
        score_BKHW = F.interpolate(score_BKhw, size=image_BCHW.shape[2:], mode="bilinear", align_corners=False)
        return score_BKHW.argmax(1).to(torch.uint8)


def write_eomt(path: Path, side: int, num_classes: int) -> None:
    image_BCHW = torch.zeros(1, 3, side, side, dtype=torch.uint8)
    model = EomtClasses(side, num_classes).eval()
    program = torch.onnx.export(
        model, (image_BCHW,), input_names=["image"], output_names=["classes"], dynamo=True, verbose=False
    )
    assert program is not None
    program.save(path)


def open_onnx(path: Path, output: str, threads: int) -> Callable[[np.ndarray], object]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda images: session.run([output], {"image": images})


def open_openvino(path: Path, output: str, threads: int, precision: str) -> Callable[[np.ndarray], object]:
    settings = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": str(threads)}
    request = import_openvino().Core().compile_model(path, "CPU", settings).create_infer_request()

    def run(images: np.ndarray) -> object:
        request.infer({"image": images})
        return request.get_tensor(output).data.copy()

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path, help="exported folders with one segmentation head")
    parser.add_argument("--size", type=int, default=294, help="height and width of the image, a multiple of 14")
    parser.add_argument("--turns", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    pixels = np.random.default_rng(0).integers(0, 256, (1, 3, options.size, options.size), dtype=np.uint8)
    cards = [read_card(folder) for folder in options.exports]
    heads = [next(iter(card.heads.items())) for card in cards]
    with tempfile.TemporaryDirectory() as temporary:
        eomt = Path(temporary) / "eomt.onnx"
        write_eomt(eomt, options.size, len(heads[0][1].description["classes"]))
        sources = [("EoMT-S", eomt, eomt, "classes")]
        for card, (name, _) in zip(cards, heads, strict=True):
            files = {path.suffix: path for graph in card.graphs.values() for path in graph.files}
            sources.append((card.folder.name, files[".onnx"], files[".xml"], f"{name}.classes"))
        calls: dict[str, Any] = {}
        for title, onnx_file, openvino_file, output in sources:
            calls[f"{title}, ONNX Runtime fp32"] = open_onnx(onnx_file, output, options.threads)
            for precision in ("f32", "bf16"):
                run = open_openvino(openvino_file, output, options.threads, precision)
                calls[f"{title}, OpenVINO {precision}"] = run
        timed = {label: partial(time_call, partial(call, pixels)) for label, call in calls.items()}
        samples = run_interleaved(timed, turns=options.turns, warmup=2)
    rows: list[list[str]] = []
    facts: dict[str, Any] = {"machine": describe_machine(torch.device("cpu")), "size": options.size, "seconds": {}}
    for label, pairs in samples.items():
        seconds = [wall for wall, _ in pairs]
        reference = [wall for wall, _ in samples[f"EoMT-S, {label.partition(', ')[2]}"]]
        spread, ratio = Spread.of([1000 * each for each in seconds]), paired_ratio(seconds, reference)
        facts["seconds"][label] = seconds
        rows.append([label, f"{spread.median:.0f}", spread.quartiles(0), f"{ratio.median:.2f}"])
    print(json.dumps(facts))
    console = Console()
    console.print(f"one image, {options.threads} thread(s); {where(facts['machine'])}")
    console.print(screen_table(["graph", "ms", "quartiles", "relative to EoMT-S"], rows, no_wrap=True))


if __name__ == "__main__":
    main()
