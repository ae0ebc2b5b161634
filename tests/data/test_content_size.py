import torch

from vitsplit.data.content_size import move_extents, stack_extents


def test_a_batch_has_extents_if_all_images_have():
    assert torch.equal(stack_extents([(3, 4), (5, 6)]), torch.tensor([[3, 4], [5, 6]]))
    assert stack_extents([None, None]) is None
    assert move_extents(None, "meta") is None
    assert move_extents(torch.zeros(2, 2), "meta").device.type == "meta"
