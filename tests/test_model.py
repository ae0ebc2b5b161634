"""Several heads on the taps of one pass. Shapes: B batch, D width, h w grid."""

import torch
from torch import nn

from vitsplit.model import Head, Model
from vitsplit.types import LayerTaps, Padding, TapRequest


class Draws(nn.Module):
    """A head that only draws random numbers, so that its output shows its random state."""

    width = 4

    def __init__(self, layer: int, draws: int) -> None:
        super().__init__()
        self.layer, self.draws = layer, draws

    def request(self, *, train: bool) -> TapRequest:
        return TapRequest(tokens=frozenset({self.layer}), maps=frozenset({0, self.layer}))

    def forward(self, taps: LayerTaps) -> torch.Tensor:
        return torch.rand(self.draws)


TAPS = LayerTaps((14, 14), Padding(), (1, 1), 1)


def alone(draws: int) -> torch.Tensor:
    torch.manual_seed(5)
    return Head(Draws(1, draws), nn.Identity())(TAPS)


def test_heads_draw_the_same_random_numbers_as_alone():
    model = Model({"a": Head(Draws(1, 3), nn.Identity()), "b": Head(Draws(2, 7), nn.Identity())})
    torch.manual_seed(5)
    output = model(TAPS, {"a": None, "b": None})
    assert output["a"].equal(alone(3)) and output["b"].equal(alone(7))


def test_one_pass_serves_the_requests_of_all_heads():
    model = Model({"a": Head(Draws(1, 3), nn.Identity()), "b": Head(Draws(2, 3), nn.Identity())})
    assert model.request(train=True) == TapRequest(tokens=frozenset({1, 2}), maps=frozenset({0, 1, 2}))


def test_targets_are_passed_to_their_decoder():
    class Decoder(nn.Module):
        def forward(self, fused_BDhw, targets="none"):
            return targets

    model = Model({name: Head(Draws(1, 3), Decoder()) for name in ("a", "b")})
    assert model(TAPS, {"a": "boxes", "b": None}) == {"a": "boxes", "b": "none"}
