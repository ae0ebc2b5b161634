import itertools

import pytest

from vitsplit.errors import ConfigError
from vitsplit.methods.split.config import SplitConfig
from vitsplit.methods.split.layers import explicit_layers, last_layers, select_layers, split_depth, uniform_layers

# (L, K_p, b) -> the set with the paper's rounding and with the release's truncation, worked out from Eq. 2 by hand.
TABLE_10 = {
    "ADE20K S and B, NYU S and B, COCO S": ((12, 4, 2), [2, 5, 8, 11], [2, 5, 8, 11]),
    "ADE20K L, Cityscapes L": ((24, 8, 2), [2, 5, 8, 11, 14, 17, 20, 23], [2, 5, 8, 11, 14, 17, 20, 23]),
    "ADE20K G": ((40, 14, 26), list(range(26, 40)), list(range(26, 40))),
    "Pascal Context L": ((24, 10, 2), [2, 4, 7, 9, 11, 14, 16, 18, 21, 23], [2, 4, 6, 9, 11, 13, 16, 18, 20, 23]),
    "NYU L": ((24, 4, 6), [6, 12, 17, 23], [6, 11, 17, 23]),
    "COCO B": ((12, 6, 2), [2, 4, 6, 7, 9, 11], [2, 3, 5, 7, 9, 11]),
    "COCO L": ((24, 8, 6), [6, 8, 11, 13, 16, 18, 21, 23], [6, 8, 10, 13, 15, 18, 20, 23]),
    "K_p = 5 of 12: 4.5 is rounded to even": ((12, 5, 2), [2, 4, 6, 9, 11], [2, 4, 6, 8, 11]),
    "VQA: one layer is the last": ((24, 1, 23), [23], [23]),
}


@pytest.mark.parametrize(("settings", "rounded", "truncated"), TABLE_10.values(), ids=TABLE_10.keys())
def test_equation_2_gives_table_10(settings, rounded, truncated):
    assert list(uniform_layers(*settings)) == rounded
    assert list(uniform_layers(*settings, rounding="int")) == truncated


def test_uniform_sets_are_strictly_increasing_and_end_at_the_last_layer():
    count = 0
    for num_layers, first, rounding in itertools.product(range(1, 41), range(40), ("round", "int")):
        for num_prior in range(1, num_layers - first + 1):
            layers = uniform_layers(num_layers, num_prior, first, rounding)
            assert len(layers) == num_prior
            assert all(a < b for a, b in itertools.pairwise(layers))
            assert layers[-1] == num_layers - 1
            assert layers[0] == (first if num_prior > 1 else num_layers - 1)
            count += 1
    assert count == 2 * sum(n * (n + 1) // 2 for n in range(1, 41))


def test_rounding_is_within_half_a_layer_of_the_exact_position_and_truncation_below_it():
    for num_layers, num_prior, first in itertools.product((12, 24, 40), range(2, 12), range(6)):
        if num_prior > num_layers - first:
            continue
        exact = [first + i * (num_layers - first - 1) / (num_prior - 1) for i in range(num_prior)]
        rounded = uniform_layers(num_layers, num_prior, first)
        truncated = uniform_layers(num_layers, num_prior, first, "int")
        assert all(abs(a - b) <= 0.5 + 1e-9 for a, b in zip(rounded, exact, strict=True))
        assert all(-1e-9 <= b - a < 1 for a, b in zip(truncated, exact, strict=True))


@pytest.mark.parametrize(
    ("settings", "numbers"),
    [
        ((12, 11, 2), ("11", "10", "12")),
        ((12, 0, 2), ("0", "10", "12")),
        ((12, 1, 12), ("12",)),
        ((12, 2, -1), ("-1",)),
    ],
)
def test_too_many_prior_layers_are_rejected(settings, numbers):
    with pytest.raises(ConfigError) as error:
        uniform_layers(*settings)
    assert all(number in str(error.value) for number in numbers)


def test_all_layers_after_b_can_be_selected():
    assert uniform_layers(12, 10, 2) == tuple(range(2, 12))


def test_last_layers():
    assert last_layers(12, 4) == (8, 9, 10, 11)
    assert last_layers(3, 3) == (0, 1, 2)
    for wrong in (0, 13):
        with pytest.raises(ConfigError, match=rf"{wrong} of 12"):
            last_layers(12, wrong)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ((), "needs prior_layers"),
        ((2, 5, 5), r"\[2, 5, 5\].*strictly increasing"),
        ((5, 2), r"\[5, 2\].*strictly increasing"),
        ((2, 12), r"\[2, 12\].*0\.\.11.*12"),
        ((-1, 2), r"\[-1, 2\].*0\.\.11"),
        ((27, 27, 28), r"\[27, 27, 28\].*0\.\.11"),
    ],
)
def test_explicit_sets_are_checked(layers, message):
    with pytest.raises(ConfigError, match=message):
        explicit_layers(12, layers)


def test_select_layers_follows_the_setting():
    assert select_layers(SplitConfig(), 12) == (2, 5, 8, 11)
    assert select_layers(SplitConfig(num_prior_layers=5, rounding="int"), 12) == (2, 4, 6, 8, 11)
    assert select_layers(SplitConfig(selection="last"), 12) == (8, 9, 10, 11)
    assert select_layers(SplitConfig(selection="explicit", prior_layers=(0, 11)), 12) == (0, 11)
    assert select_layers(SplitConfig(selection="gate"), 12) == tuple(range(12))
    assert select_layers(SplitConfig(prior_head=False), 12) == ()
    with pytest.raises(ConfigError, match=r"13 of 12.*1\.\.12"):
        select_layers(SplitConfig(selection="gate", num_prior_layers=13), 12)


def test_the_task_head_branches_off_before_the_last_k_t_blocks():
    assert [split_depth(SplitConfig(num_tuned_layers=k), 12) for k in (0, 1, 3, 12)] == [12, 11, 9, 0]
    with pytest.raises(ConfigError, match=r"--num-tuned-layers 13.*12 blocks.*0\.\.12"):
        split_depth(SplitConfig(num_tuned_layers=13), 12)
