"""The recipes of Figure 9: parameters by arithmetic."""

import pytest

from vitsplit.analysis.cost import count_parameters, shape_model
from vitsplit.recipes import recipe

D, HEADS, K_T, K_P = 768, 12, 8, 4
# Attention and MLP with biases and two norms; DINOv2's 7,089,408 has two layer scales on top.
BLOCK = 4 * D * D + 4 * D + 8 * D * D + 5 * D + 4 * D
DEFORMABLE = 9 * D * D + 162 * D + 18
PRIOR, FUSION = K_P * D * D + D + DEFORMABLE, 2 * D * D + D + DEFORMABLE
ADE20K_DECODER = 4_840_086
# SAM's blocks add positions relative to windows of 14 x 14 patches; three of the last eight (5, 8, 11) look at all 64 x
# 64 patches of its 1024 pixels. For rows and for columns, per channel of a head.
RELATIVE = 2 * (D // HEADS) * (5 * (2 * 14 - 1) + 3 * (2 * 64 - 1))


@pytest.mark.parametrize(("name", "more"), [("mae", 0), ("siglip", 0), ("sam", RELATIVE)])
def test_trainable_parameters(name, more):
    assert BLOCK == 7_089_408 - 2 * D
    backbone, model = shape_model(recipe(f"ade20k-{name}-base"))
    counts = count_parameters(model, backbone)
    assert (counts["prior_head"], counts["fusion"], counts["decoder"]) == (PRIOR, FUSION, ADE20K_DECODER)
    assert counts["task_head"] == K_T * BLOCK + more
    assert counts["trainable"] == K_T * BLOCK + more + PRIOR + FUSION + ADE20K_DECODER
