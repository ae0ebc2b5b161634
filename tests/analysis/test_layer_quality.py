"""Quality against the cost of one more head, on known learning curves."""

import pytest
import torch

from vitsplit.analysis.layer_quality import advise, measure
from vitsplit.analysis.layer_search import Candidate, Part
from vitsplit.analysis.variants import Variant
from vitsplit.engine.override import override
from vitsplit.recipes import recipe

CONFIG = override(recipe("laptop-segmentation-paper"), {"warmup_steps": 0})


def measured(tmp_path, losses, *, seconds=0.0):
    """Candidates whose loss is constant but for noise that they share, at a second per step."""
    noise = torch.randn(1000, generator=torch.Generator().manual_seed(0)).tolist()
    own = torch.randn(len(losses), 1000, generator=torch.Generator().manual_seed(1)).tolist()
    everyone = [
        Candidate(
            variant=Variant(name=name, settings={}),
            config=override(CONFIG, {"num_tuned_layers": count}),
            head_gmacs=count + 1.0,
            step_gmacs=1.0,
            folder=tmp_path / name,
        )
        for count, name in enumerate(losses)
    ]
    index = {name: number for number, name in enumerate(losses)}

    def train_to(config, folder, target):
        values = [losses[folder.name] + noise[step] + 0.01 * own[index[folder.name]][step] for step in range(target)]
        return Part(losses=values, seconds=[1.0] * target)

    return measure(everyone, train_to, seconds=seconds)


def test_noise_of_the_batches_cancels(tmp_path):
    found = measured(tmp_path, {"a": 1.0, "b": 1.05}, seconds=400)
    assert found[0].candidate.steps == found[1].candidate.steps == 200
    # 100 steps of a difference with a standard deviation of 0.01 sqrt 2, whereas the losses have one of 1.
    assert found[1].behind == pytest.approx(0.05, abs=0.006)
    assert found[1].error == pytest.approx(0.01 * 2**0.5 / 10, rel=0.3)


def test_the_first_steps_are_trained_even_without_time(tmp_path):
    assert {each.candidate.steps for each in measured(tmp_path, {"a": 1.0, "b": 2.0})} == {10}


@pytest.mark.parametrize(
    ("losses", "chosen", "own_is_better"),
    [
        ({"kt0": 1.0, "kt1": 0.8, "kt2": 0.8, "own": 0.7}, ("kt1", "kt2"), True),
        ({"kt0": 0.6, "kt1": 0.8, "kt2": 0.8, "own": 0.7}, ("kt0",), False),
        ({"kt0": 1.0, "kt1": 0.9, "kt2": 0.8, "own": 0.7}, ("kt2",), True),
    ],
)
def test_advice_names_the_cheapest_head_near_the_best(tmp_path, losses, chosen, own_is_better):
    text = advise(measured(tmp_path, losses, seconds=4000))
    assert text.startswith(chosen) and "(own)" in text
    assert ("prefer it" in text) == own_is_better
