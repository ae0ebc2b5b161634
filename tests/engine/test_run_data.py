"""Matching of the heads' images, and their batches."""

from pathlib import Path

import pytest
import torch

from vitsplit.engine.run_data import collate, match_images
from vitsplit.errors import DataError
from vitsplit.tasks.depth.data import DepthSample
from vitsplit.tasks.depth.data import collate as collate_depth
from vitsplit.tasks.segmentation.data import SegmentationSample
from vitsplit.tasks.segmentation.data import collate as collate_segmentation


def paths(root: str, *names: str) -> list[Path]:
    return [Path(root) / name for name in names]


def test_images_match_by_relative_name_in_any_order():
    found = match_images(
        {
            "segmentation": paths("a/images/train", "town/2.jpg", "town/1.jpg", "sea/1.jpg"),
            "depth": paths("elsewhere/train", "sea/1.png", "town/1.png", "town/2.png"),
        }
    )
    # sea/1, town/1, town/2: the order that segmentation's own layout has too.
    assert found == [
        {"segmentation": 2, "depth": 0},
        {"segmentation": 1, "depth": 1},
        {"segmentation": 0, "depth": 2},
    ]


def test_the_order_does_not_depend_on_the_tasks():
    names = ("b.jpg", "c.jpg", "a.jpg")
    alone = match_images({"depth": paths("x", *names)})
    both = match_images({"segmentation": paths("y", *reversed(names)), "depth": paths("x", *names)})
    assert [match["depth"] for match in alone] == [match["depth"] for match in both] == [2, 0, 1]


def test_images_missing_from_a_task_are_counted_and_named():
    with pytest.raises(DataError) as error:
        match_images(
            {
                "segmentation": paths("a", *(f"{index}.jpg" for index in range(9))),
                "depth": paths("b", "1.png", "2.png", "new.png"),
            }
        )
    message = str(error.value)
    assert "segmentation has no labels for 1 of 10 images (new)" in message
    assert "depth has no labels for 7 of 10 images (0, 3, 4, 5, 6, ...)" in message


def test_two_images_with_one_name_are_rejected():
    with pytest.raises(DataError, match=r"a/1\.png and a/1\.jpg"):
        match_images({"depth": paths("a", "1.jpg", "1.png")})


def test_images_of_a_batch_are_stored_and_moved_once():
    image_CHW = torch.zeros(3, 4, 6, dtype=torch.uint8)
    samples = {
        "segmentation": [SegmentationSample(image_CHW, torch.zeros(4, 6, dtype=torch.uint8), "a.jpg")] * 2,
        "depth": [DepthSample(image_CHW, torch.ones(4, 6), "a.jpg")] * 2,
    }
    batch = collate(samples, {"segmentation": collate_segmentation, "depth": collate_depth})
    assert batch.image_BCHW.shape == (2, 3, 4, 6) and batch.names == ["a.jpg", "a.jpg"]
    for moved in (batch, batch.to("meta")):
        assert all(part.image_BCHW is moved.image_BCHW for part in moved.parts.values())
    assert batch.to("meta").parts["depth"].depth_BHW.device.type == "meta"
