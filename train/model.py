"""The encoder: a ResNet-18 variant of output stride 4 (paper, section 3.2 and appendix A).

Every width follows from `ModelConfig`; one shared encoder serves all frames.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrflow.train.config import ModelConfig

STRIDE = 4
# Grey level and contrast of an average picture; one for all channels, so that a zeroed channel means mid-grey in each.
PIXEL_MEAN, PIXEL_SCALE = 0.45, 0.25


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., 2016)."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or channels_in != channels_out:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels_out, 1, stride, bias=False), nn.BatchNorm2d(channels_out)
            )

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.shortcut(x))


class Encoder(nn.Module):
    """Normalised pictures [B, 3, H, W], RGB -> features [B, C, ceil(H / 4), ceil(W / 4)].

    `normalise` makes the input. Feature (y, x) looks at the picture around pixel (4y + 1, 4x + 1), half a pixel from
    the centre 4i + 1.5 of the cell whose labels it carries; the uneven padding before the first convolution sees to it.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        first, second, third, fourth = config.widths
        self.config = config
        self.stem = nn.Conv2d(3, first, 7, 2, bias=False)
        self.stem_norm = nn.BatchNorm2d(first)
        self.blocks = nn.Sequential(
            ResidualBlock(first, first, 1),
            ResidualBlock(first, first, 1),
            ResidualBlock(first, second, 2),
            ResidualBlock(second, second, 1),
            ResidualBlock(second, third, 1),
            ResidualBlock(third, third, 1),
            ResidualBlock(third, fourth, 1),
            ResidualBlock(fourth, fourth, 1),
        )
        self.head = nn.Conv2d(fourth, config.feature_channels, 3, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        x = F.pad(image, (2, 4, 2, 4), mode="replicate")
        x = F.relu(self.stem_norm(self.stem(x)))
        features = self.head(self.blocks(x))
        if self.config.unit_norm:
            features = features / features.square().sum(1, keepdim=True).add(1e-12).sqrt()
        return features


def normalise(image: Tensor) -> Tensor:
    """RGB 0..1 -> what the encoder expects; zero is mid-grey."""
    return (image - PIXEL_MEAN) / PIXEL_SCALE


def parameter_count(model: nn.Module) -> int:
    """Number of learned values."""
    return sum(parameter.numel() for parameter in model.parameters())


def new_encoder(config: ModelConfig, seed: int) -> Encoder:
    """An untrained encoder whose weights depend on nothing but the configuration and the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(config)
