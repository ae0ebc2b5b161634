"""Settings under which a real run, on a real (random) backbone, takes a second."""

from typing import Any

SMALL_RUN: dict[str, Any] = {
    "backbone": "vit_tiny_patch16_224",
    "random_weights": True,
    "num_tuned_layers": 2,
    "steps": 3,
    "batch_size": 2,
    "crop_size": (48, 64),
    "image_scale": None,
    "workers": 0,
    "precision": "fp32",
    "track": (),
    "log_every": 1,
}
