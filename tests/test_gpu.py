"""Tests on a GPU, with the CPU as the reference: ``pytest -m gpu``. Other tests do not use GPUs."""

import json
import os
import subprocess
import sys

import pytest
import torch
from tiny_language import WIDTH, tiny_folder
from torchvision.ops import deform_conv2d

import vitsplit
from small_run import SMALL_RUN
from vitsplit.nn.deformable_convolution import deform_conv3x3

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")]

CPU = {"CUDA_VISIBLE_DEVICES": ""}
GPU = {"NVIDIA_TF32_OVERRIDE": "0"}
"""Convolutions in float32 itself, and not in the 10 bits that PyTorch lets them have there."""
COMMON = {name: value for name, value in SMALL_RUN.items() if name not in ("crop_size", "image_scale")}
TASKS = {
    "segmentation": {"crop_size": (48, 64)},
    "segmentation on kept features": {"crop_size": (48, 64), "cache_features": 1, "workers": 2},
    "depth": {"crop_size": (48, 64)},
    "detection": {
        "image_scale": (64, 48), "jitter": "none", "anchor_sizes": (4, 8, 16, 32, 64), "pyramid_width": 16,
        "sampled_proposals": 4096,  # all anchors, because a GPU would draw others
    },
    "vqa": {
        "crop_size": (48, 64), "language_width": WIDTH, "lora_rank": 2, "lora_alpha": 4, "visual_grid": (2, 2),
        "max_new_tokens": 4, "num_prior_layers": 2,
    },
}  # fmt: skip


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-5), (torch.bfloat16, 0.02)], ids=str)
def test_deformable_convolution_equals_torchvision(dtype, error):
    generator = torch.Generator().manual_seed(0)
    shapes = {"map": (2, 32, 9, 11), "offset": (2, 18, 9, 11), "weight": (48, 32, 3, 3)}
    inputs = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes.values()]

    def with_gradients(form, device, dtype):
        leaves = [tensor.to(device, dtype).requires_grad_() for tensor in inputs]
        out = form(*leaves)
        assert out.dtype == dtype
        seed = torch.linspace(-1, 1, out.numel(), dtype=dtype, device=device).view(out.shape)
        return [out, *torch.autograd.grad((out * seed).sum(), leaves)]

    ours = with_gradients(deform_conv3x3, "cuda", dtype)
    oracle = with_gradients(lambda *leaves: deform_conv2d(*leaves, padding=1), "cpu", torch.float64)
    for name, a, b in zip(("output", *shapes), ours, oracle, strict=True):
        assert (a.cpu().double() - b).norm() < error * b.norm(), name


@pytest.mark.parametrize("case", TASKS)
def test_training_agrees_with_the_cpu(case, scenes, tmp_path):
    task = case.split()[0]
    settings = {**COMMON, **TASKS[case], "task": task, "steps": 6, "cache_folder": str(tmp_path / "kept")}
    if task == "vqa":
        settings["language_model"] = str(tiny_folder(tmp_path / "language"))
    _run(CPU, "-c", _TRAIN, json.dumps({**settings, "data": str(scenes), "out": str(tmp_path / "cpu")}))
    expected = _losses(tmp_path / "cpu")
    drawn = 0.05 if task == "detection" else 0.0  # the anchors that train the proposals
    for precision, tolerance in (("fp32", 1e-3), ("bf16", 0.05), ("fp16", 0.1)):  # in fp16 first steps may be skipped
        out = tmp_path / precision
        _run(GPU, "-c", _TRAIN, json.dumps({**settings, "data": str(scenes), "out": str(out), "precision": precision}))
        assert _losses(out) == pytest.approx(expected, rel=max(tolerance, drawn)), precision
        (start,) = json.loads((out / "environment.json").read_text())
        assert start["device"] == torch.cuda.get_device_name()


def test_predictions_agree_with_the_cpu(scenes, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    settings = {**SMALL_RUN, "data": str(scenes), "out": str(tmp_path / "run")}
    _run(CPU, "-c", _TRAIN, json.dumps(settings))
    image = min((scenes / "images" / "val").iterdir())
    here, there = (vitsplit.load(tmp_path / "run", device=device).predict(image) for device in ("cpu", "cuda"))
    assert (here.mask == there.mask).mean() > 0.99


def test_bench_train_step_measures_gpu_memory():
    output = _run(GPU, "-m", "vitsplit", "bench", "train-step", "ade20k-small",
                  "--methods", "vitsplit", "full-finetune", "--size", "224", "224",
                  "--steps", "2", "--device", "cuda", "--json")  # fmt: skip
    frozen, tuned = (each["peak_memory_bytes"]["step"] for each in json.loads(output)["methods"].values())
    assert 0 < frozen < tuned


_TRAIN = "import json, sys, vitsplit; vitsplit.train(**json.loads(sys.argv[1]))"


def _run(environment, *arguments):
    done = subprocess.run(
        [sys.executable, *arguments], env=os.environ | environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def _losses(run):
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [row["loss"] for row in map(json.loads, lines) if "loss" in row]
