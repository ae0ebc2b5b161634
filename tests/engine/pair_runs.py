"""Runs in two processes: what test_distributed.py and test_sharding.py compare with runs in one.

Starting processes takes longer than most of the runs, so ``conftest.py`` starts them once for all.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from small_run import SMALL_RUN
from vitsplit.engine.override import override
from vitsplit.engine.sampling import SampleStream
from vitsplit.recipes import recipe
from vitsplit.recipes.starting_point import starting_heads
from vitsplit.saved_config import config_to_dict

Runs = dict[str, Sequence[Mapping]]

# ---- data-parallel runs

SETTINGS = {"steps": 20, "batch_size": 8, "accumulate": 2, "eval_every": 10, "clip_norm": 0.5, "ema": 0.9}
STREAM = SampleStream(23, 0)
SECOND_HALF = [f"image-{STREAM[position][0]:02d}.png" for position in range(12, 16)]  # of step 2: the second process's


def distributed_runs(out: Path, scenes: Path) -> Runs:
    """Tiny runs, and two command line runs on the scenes data set."""
    out.mkdir(exist_ok=True)
    write_half_labeled(scenes, out / "data")
    norms = {"kind": "tiny", "steps": 4, "batch_size": 8, "eval_every": 2, "head": {"batch_norm": True}}
    runs = {
        "good": SETTINGS | {"kind": "tiny", "track": ["tensorboard"]},
        "bad": SETTINGS | {"kind": "tiny", "accumulate": 1, "nan_for": SECOND_HALF[1]},
        "norms": norms,
        "averaged_norms": norms | {"ema": 0.5},
    }
    for name, config in (("one_head", one_head_config()), ("two_heads", two_heads_config())):
        (out / f"{name}.json").write_text(json.dumps(config_to_dict(config)))
        runs[name] = {"command": ["train", *heads_of(name, out), "--config", str(out / f"{name}.json")]}
    return {name: [each] for name, each in runs.items()}


def one_head_config():
    # AdamW changes weights whose gradient is only rounding error by up to `lr`.
    settings = SMALL_RUN | {"steps": 5, "decoder_norm": "group", "lr": 3e-5}
    return override(recipe("laptop-segmentation"), settings)


def two_heads_config():
    settings = SMALL_RUN | {"steps": 3, "image_scale": (64, 48), "lr": 3e-5}
    heads = {"segmentation": {"decoder_norm": "group"}, "depth": {"decoder_norm": "group", "clip_norm": 0.5}}
    return override(starting_heads({name: name for name in heads}), settings | heads)


def heads_of(name: str, out: Path) -> list[str]:
    """The arguments of a command for task, data and output."""
    run = ["--out", str(out / name / "run")]
    if name == "one_head":
        return ["segmentation", "--data", str(out / "data"), *run]
    return [f"--head={task}:{out / 'data'}" for task in ("segmentation", "depth")] + run


def write_half_labeled(scenes: Path, data: Path) -> None:
    """Scenes whose masks are mostly ignored in the images that the second process reads in the first epoch."""
    shutil.copytree(scenes, data, dirs_exist_ok=True)
    masks = sorted((data / "masks" / "train").iterdir())
    stream = SampleStream(len(masks), 0)
    for position in (1, 3, 5):
        path = masks[stream[position][0]]
        mask_HW = np.array(Image.open(path))
        mask_HW[:, 6:] = 255
        Image.fromarray(mask_HW).save(path)


# ---- sharded runs

SHARDED_SETTINGS = {
    "steps": 6,
    "batch_size": 8,
    "accumulate": 2,
    "eval_every": 3,
    "checkpoint_every": 2,
    "clip_norm": 0.25,
    "lr": 1e-3,
    "log_every": 1,
}
LANGUAGE_MODELS = {
    "tuned": {},
    "tied": {"tied": True, "checkpointed": True},
    "frozen": {"frozen": True},
    "adapted": {"adapted": True, "checkpointed": True},
}
CULPRIT = f"image-{SampleStream(23, 0)[13][0]:02d}.png"  # in the second step, in the second process's part


def settings_of(sharding: str) -> dict:
    """Only FSDP2 supports EMA."""
    return SHARDED_SETTINGS | ({"ema": 0.9} if sharding == "fsdp2" else {})


def sharded_runs(sharding: str, out: Path, scenes: Path) -> Runs:
    """Runs with a language model, and for FSDP2 one of the command line."""
    out.mkdir(exist_ok=True)
    each = settings_of(sharding) | {"sharding": sharding, "kind": "worded"}
    runs = {name: [each | changes] for name, changes in LANGUAGE_MODELS.items()}
    runs["interrupted"] = [each | {"interrupt_at": 8}, each | {"resume": True}]
    runs["terminated"] = [each | {"terminate_at": 6}, each | {"resume": True}]
    runs["bf16"] = [each | {"precision": "bf16"}]
    runs["bad"] = [each | {"nan_for": CULPRIT}]
    if sharding == "fsdp2":
        file = out / "config.json"
        file.write_text(json.dumps(config_to_dict(command_config())))
        arguments = ["--data", str(scenes), "--out", str(out / "command" / "run"), "--config", str(file)]
        runs["command"] = [{"command": ["train", "segmentation", *arguments, "--sharding", "fsdp2"]}]
    return runs


def command_config():
    # Low-rank updates leave nothing to shard.
    settings = SMALL_RUN | {"steps": 3, "decoder_norm": "group", "lr": 3e-5, "tune_blocks": "full"}
    return override(recipe("laptop-segmentation"), settings)
