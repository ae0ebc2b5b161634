"""Detection in the form of a graph; the oracle is the decoder itself, which is torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_detector import decoder

from vitsplit.tasks.detection.graph import GraphDetector, on_input
from vitsplit.types import LayerTaps, Padding


def random_map(height: int, width: int, seed: int) -> torch.Tensor:
    return torch.randn(1, 32, height, width, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("rcnn", ["torchvision", "mmdet"])
@pytest.mark.parametrize("masks", [True, False])
@pytest.mark.parametrize("grid", [(5, 7), (12, 9), (31, 40)])
def test_detections_are_those_of_the_decoder(grid: tuple[int, int], masks: bool, rcnn: Any) -> None:
    built = decoder(masks, score_threshold=0.26, max_detections=40, rcnn=rcnn).eval()
    with torch.inference_mode():
        for seed in range(3):
            fused = random_map(*grid, seed)
            (expected,), (found,) = built(fused), GraphDetector(built)(fused)
            assert len(expected.boxes_N4) > 3
            assert torch.equal(found.labels_N, expected.labels_N)
            assert torch.allclose(found.scores_N, expected.scores_N, atol=1e-6)
            assert torch.allclose(found.boxes_N4, expected.boxes_N4, atol=1e-3)
            if masks:
                assert torch.allclose(found.masks_Nmm, expected.masks_Nmm, atol=1e-5)


def test_no_detection() -> None:
    built = decoder(score_threshold=0.999).eval()
    with torch.inference_mode():
        (found,) = GraphDetector(built)(random_map(5, 7, 0))
    assert found.boxes_N4.shape == (0, 4) and found.masks_Nmm.shape == (0, 28, 28)


def test_boxes_on_the_input_are_clipped_and_those_in_the_padding_dropped() -> None:
    built = decoder(score_threshold=0.26).eval()
    with torch.inference_mode():
        (found,) = built(random_map(5, 7, 0))
    boxes = torch.tensor([[0.0, 0, 4, 90], [10, 12, 20, 30], [100, 60, 112, 80]])
    found = type(found)(boxes, torch.tensor([2, 0, 1]), torch.tensor([0.9, 0.8, 0.7]), None, found.limits)
    taps = LayerTaps((70, 100), Padding(left=6, top=5, right=6, bottom=5), (5, 7), 1)
    outputs = on_input(found, taps)
    assert outputs["boxes"].tolist() == [[4, 7, 14, 25], [94, 55, 100, 70]]
    assert outputs["labels"].tolist() == [0, 1] and outputs["scores"].tolist() == pytest.approx([0.8, 0.7])
