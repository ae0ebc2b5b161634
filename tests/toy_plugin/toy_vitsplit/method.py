"""The last frozen layer's map, times one trained factor per channel."""

import torch
from torch import nn

from vitsplit.methods import MethodConfig
from vitsplit.types import TapRequest


class ChannelScaleConfig(MethodConfig):
    """One trained factor per channel of the last frozen layer."""

    name = "channel-scale"
    title = "channel scale"
    reads_frozen = True

    def build(self, backbone, num_maps):
        return ChannelScale(backbone)


class ChannelScale(nn.Module):
    def __init__(self, backbone):
        super().__init__()
        self.width, self.last_layer = backbone.width, backbone.num_layers - 1
        self.scale_D = nn.Parameter(torch.ones(backbone.width))

    def request(self, *, train):
        return TapRequest(maps=frozenset({self.last_layer}))

    def pretrained_parameters(self):
        return {}

    def forward(self, taps):
        return taps.maps[self.last_layer] * self.scale_D[:, None, None]
