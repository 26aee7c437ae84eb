"""Encoder: a ResNet-18 variant of output stride 4 (paper, section 3.2 and appendix A).

`ModelConfig` sets every width. One encoder is shared by all frames.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from corrflow.train.config import ModelConfig

STRIDE = 4
# Mean and standard deviation of average images, the same for all channels, so that a zeroed channel is mid-grey.
PIXEL_MEAN, PIXEL_SCALE = 0.45, 0.25
OPPONENT_WEIGHT = 1.5


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


def colour_filters() -> tuple[Tensor, Tensor]:
    """Return filters of the raw colours around a cell: cell means [3, 3, 4, 4] and their neighbours [27, 3, 3, 3].

    The first filters have stride 4 on normalised RGB; the second collect the means of 3x3 cells. A colour is lightness,
    red against green, and yellow against blue. The last two have larger weights because they vary less.
    """
    opponents = torch.tensor(
        [
            [0.299, 0.587, 0.114],
            [OPPONENT_WEIGHT, -OPPONENT_WEIGHT, 0.0],
            [OPPONENT_WEIGHT / 2, OPPONENT_WEIGHT / 2, -OPPONENT_WEIGHT],
        ]
    )
    means = opponents[:, :, None, None].expand(-1, -1, STRIDE, STRIDE) / STRIDE**2
    neighbours = torch.eye(27).reshape(3, 3, 3, 27).permute(3, 2, 0, 1)  # from [y, x, colour, filter]
    return means, neighbours.contiguous()


# Replicated pixels around an image, so that a feature is in the middle of its filters.
COLOUR_PADDING = (STRIDE, 2 * STRIDE - 1, STRIDE, 2 * STRIDE - 1)
COLOUR_CHANNELS = 27


def with_colours(features: Tensor, colours: Tensor, share: float) -> Tensor:
    """Append colours [B, 27, h, w] to unit features [B, C, h, w]: unit features [B, C + 27, h, w].

    Their dot product is (1 - share) times the product of the features plus share times the product of the colours.
    """
    # The floor keeps the noise of dark and grey cells short.
    return side_by_side(features, of_unit_length(colours, 1e-4), share)


def of_unit_length(features: Tensor, floor: float = 1e-12) -> Tensor:
    """Divide features [B, C, h, w] by their lengths over the channels; `floor` is added to the squared lengths."""
    return features / features.square().sum(1, keepdim=True).add(floor).sqrt()


def side_by_side(features: Tensor, others: Tensor, share: float) -> Tensor:
    """Concatenate unit features [B, C, h, w] and [B, D, h, w], which have weight `share` in dot products."""
    return torch.cat([features * (1 - share) ** 0.5, others * share**0.5], 1)


def halved(image: Tensor) -> Tensor:
    """Average 2x2 pixels, fewer at the end of odd sides: [B, 3, H, W] -> [B, 3, ceil(H / 2), ceil(W / 2)]."""
    return F.avg_pool2d(F.pad(image, (0, 1, 0, 1), mode="replicate"), 2)


def at_two_sizes(learned: Callable[[Tensor], Tensor], image: Tensor, coarse_share: float) -> Tensor:
    """Compute unit features of an image, and append or substitute features of the image at half scale.

    learned: [B, 3, H, W] -> unit features [B, C, ceil(H / 4), ceil(W / 4)]. Half-scale features are interpolated to
    the same cells; their weight in dot products is `coarse_share`.
    """
    if not coarse_share:
        return learned(image)
    coarse = doubled(learned(halved(image)), image)
    return coarse if coarse_share == 1 else side_by_side(learned(image), coarse, coarse_share)


def doubled(features: Tensor, image: Tensor) -> Tensor:
    """Interpolate unit features of cells of 8 pixels to the cells of 4 pixels of an image [B, 3, H, W].

    [B, C, ceil(H / 8), ceil(W / 8)] -> unit features [B, C, ceil(H / 4), ceil(W / 4)]
    """
    # The centre of large cell i is at small cell 2i + 0.5, as the interpolation assumes.
    finer = F.interpolate(features, scale_factor=2.0, mode="bilinear", align_corners=False)
    # Not -(-side // STRIDE): exported, a division of negative numbers rounds the other way.
    rows, columns = ((side + STRIDE - 1) // STRIDE for side in image.shape[-2:])
    return of_unit_length(finer[:, :, :rows, :columns])


def pad_image(image: Tensor, stride: int) -> Tensor:
    """Pad an image for the first convolution of an encoder, so that receptive fields are centred in their cells."""
    before = 2 if stride == STRIDE else 0
    return F.pad(image, (before, 6 - before, before, 6 - before), mode="replicate")


class Encoder(nn.Module):
    """Encoder of images [B, 3, H, W], RGB of `normalise`, into features [B, C, ceil(H / 4), ceil(W / 4)].

    The receptive field of feature (y, x) is centred at pixel (4y + 1, 4x + 1), half a pixel from the cell's centre
    4i + 1.5. The asymmetric padding before the first convolution achieves this. Stride 8 adds a max-pooling after that
    convolution; the centre is then pixel (8y + 3, 8x + 3) of a cell whose centre is 8i + 3.5.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.means: Tensor
        self.neighbours: Tensor
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
        self.head_norm: nn.Module = nn.Identity()
        if config.feature_norm:
            # Without a scale and a shift of its own, which could undo the normalisation.
            self.head_norm = nn.BatchNorm2d(config.feature_channels).requires_grad_(False)
        if config.colour_share:
            means, neighbours = colour_filters()
            self.register_buffer("means", means * PIXEL_SCALE, persistent=False)
            self.register_buffer("neighbours", neighbours, persistent=False)

    def cells(self, image: Tensor) -> Tensor:
        """Compute the learned features of an image at the encoder's own stride: [B, C, ceil(H / 4 or 8), ...]."""
        x = F.relu(self.stem_norm(self.stem(pad_image(image, self.config.stride))))
        if self.config.stride != STRIDE:
            x = F.max_pool2d(x, 3, 2, 1)
        features = self.head_norm(self.head(self.blocks(x)))
        return of_unit_length(features) if self.config.unit_norm else features

    def learned(self, image: Tensor) -> Tensor:
        """Compute the learned features at one scale, in cells of 4 pixels."""
        features = self.cells(image)
        return features if self.config.stride == STRIDE else doubled(features, image)

    def learned_at_all_scales(self, image: Tensor) -> Tensor:
        """Compute the learned features, those of the image at half scale among them, in cells of 4 pixels."""
        return at_two_sizes(self.learned, image, self.config.coarse_share)

    def append_colours(self, features: Tensor, image: Tensor) -> Tensor:
        """Append the raw colours of an image to learned features."""
        if not self.config.colour_share:
            return features
        means = F.conv2d(F.pad(image, COLOUR_PADDING, mode="replicate"), self.means, stride=STRIDE)
        return with_colours(features, F.conv2d(means, self.neighbours), self.config.colour_share)

    def forward(self, image: Tensor) -> Tensor:
        return self.append_colours(self.learned_at_all_scales(image), image)

    @property
    def learned_channels(self) -> int:
        """Number of learned channels at all scales."""
        return (2 if 0 < self.config.coarse_share < 1 else 1) * self.config.feature_channels

    @property
    def channels(self) -> int:
        """Number of output channels."""
        return self.learned_channels + (COLOUR_CHANNELS if self.config.colour_share else 0)


def normalise(image: Tensor) -> Tensor:
    """Map RGB 0..1 to the encoder's input range, in which mid-grey is zero."""
    return (image - PIXEL_MEAN) / PIXEL_SCALE


def parameter_count(model: nn.Module) -> int:
    """Count the trained values."""
    return sum(parameter.numel() for parameter in model.parameters())


def new_encoder(config: ModelConfig, seed: int) -> Encoder:
    """Create an encoder with random weights, which depend only on the configuration and the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Encoder(config)
