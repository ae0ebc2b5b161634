"""Does the choice of layers find a planted cause? Quality of every K_t on an intact backbone and on a damaged one.

The damaged backbone is the same one with new random weights in its last blocks, as timm initializes them. A head that
reads them gets less out of the frozen model, so more blocks must be tuned: those below the damage with it.

    python benchmarks/planted_layers.py --out runs/planted --minutes 10
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro
from safetensors.torch import save_file
from torch import nn

from vitsplit.analysis.layer_quality import advise, to_json
from vitsplit.analysis.short_runs import measure_layers
from vitsplit.atomic_files import write_json
from vitsplit.backbone import load_backbone
from vitsplit.engine.override import override
from vitsplit.recipes import recipe
from vitsplit.sample import write_segmentation_set


@dataclass
class Options:
    """Settings of the measurement."""

    out: Path
    """Folder of scenes, weights and results."""
    backbone: str = "dinov2-small-focus"
    """The intact backbone."""
    damaged: int = 3
    """Number of last blocks with new weights."""
    minutes: float = 10.0
    """Time of the short runs on each backbone."""
    scenes: int = 160
    """Number of generated training scenes."""


def damage(model: nn.Module, count: int) -> None:
    """New weights for the last blocks: normal with a standard deviation of 0.02, as in timm."""
    generator = torch.Generator().manual_seed(0)
    for block in list(model.blocks)[-count:]:
        for module in block.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02, generator=generator)
                nn.init.zeros_(module.bias)


def main(options: Options) -> None:
    data = options.out / "scenes"
    if not data.exists():
        write_segmentation_set(data, options.scenes, 1, (196, 252), 0)
    settings = {"crop_size": (196, 252), "image_scale": None, "batch_size": 4, "steps": 300, "warmup_steps": 10}
    results = {}
    for name in ("intact", "damaged"):
        backbone = load_backbone(options.backbone)
        if name == "damaged":
            damage(backbone.model, options.damaged)
        file = options.out / f"{name}.safetensors"
        save_file(backbone.model.state_dict(), file)
        settings |= {"backbone": backbone.info.timm_name.partition(".")[0], "weights": str(file)}
        config = override(recipe("laptop-segmentation"), settings)
        found = measure_layers(config, data, options.out / name, max_minutes=options.minutes)
        print(f"{name}: {advise(found)}")
        for each in found:
            print(
                f"  {each.candidate.variant.label}: loss {each.loss:.3f}, {each.behind:.3f} +- {each.error:.3f} above "
                f"the lowest, {each.candidate.head_gmacs:.2f} G"
            )
        results[name] = to_json(found)
    write_json(options.out / "planted_layers.json", results)
    print(json.dumps({name: min(each, key=lambda row: row["loss"])["name"] for name, each in results.items()}))


if __name__ == "__main__":
    main(tyro.cli(Options))
