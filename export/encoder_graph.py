"""Encoder of an artifact, frame -> features, as a PyTorch module and as ONNX."""

from __future__ import annotations

import copy

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

from corrflow.errors import InputError
from corrflow.export.propagate_graph import IR_VERSION
from corrflow.plugins.local_soft_copy import onnx_function
from corrflow.train.model import (
    COLOUR_CHANNELS,
    COLOUR_PADDING,
    PIXEL_MEAN,
    PIXEL_SCALE,
    STRIDE,
    Encoder,
    ResidualBlock,
    at_two_sizes,
    colour_filters,
    doubled,
    of_unit_length,
    pad_image,
    side_by_side,
    with_colours,
)


class FrameEncoder(nn.Module):
    """Encoder for inference: [1, H, W, 3] uint8, BGR -> [1, C, ceil(H / 4), ceil(W / 4)] float32 or float16.

    Batch normalisation, pixel scaling and the order of colours are folded into the convolutions. The first padding
    repeats pixels instead of adding zeros, so it commutes with scaling.

    half: convolutions in float16, for TensorRT. Feature lengths and raw colours stay float32: squares of small numbers
    vanish in 16 bits, and no training compensates for rounded colours.
    """

    def __init__(self, encoder: Encoder, half: bool = False) -> None:
        super().__init__()
        self.half_precision = half
        encoder = copy.deepcopy(encoder).eval()
        self.unit_norm, self.stride = encoder.config.unit_norm, encoder.config.stride
        self.stem = _fused(encoder.stem, encoder.stem_norm)
        with torch.no_grad():
            weight = self.stem.weight / PIXEL_SCALE
            assert self.stem.bias is not None
            self.stem.bias -= weight.sum((1, 2, 3)) * PIXEL_MEAN
            self.stem.weight.copy_(weight.flip(1) / 255)
        self.blocks = nn.Sequential(*(_FusedBlock(block) for block in encoder.blocks))  # type: ignore[arg-type]
        self.head = _fused(encoder.head, encoder.head_norm) if encoder.config.feature_norm else encoder.head
        self.colour_share, self.coarse_share = encoder.config.colour_share, encoder.config.coarse_share
        if self.colour_share:
            means, neighbours = colour_filters()
            self.means = nn.Conv2d(3, 3, STRIDE, STRIDE).requires_grad_(False)
            assert self.means.bias is not None
            self.means.weight.copy_(means.flip(1) / 255)
            self.means.bias.copy_(-PIXEL_MEAN * means.sum((1, 2, 3)))
            self.neighbours = nn.Conv2d(3, COLOUR_CHANNELS, 3, bias=False).requires_grad_(False)
            self.neighbours.weight.copy_(neighbours)
        if half:
            for part in (self.stem, self.blocks, self.head):
                part.half()

    def learned(self, pixels: Tensor) -> Tensor:
        """Compute learned features [1, C, ceil(H / 4), ceil(W / 4)] float32 of pixels [1, 3, H, W] float32."""
        padded = pad_image(pixels, self.stride)
        x = F.relu(self.stem(padded.half() if self.half_precision else padded))
        if self.stride != STRIDE:
            x = F.max_pool2d(x, 3, 2, 1)
        features = self.head(self.blocks(x)).float()
        features = of_unit_length(features) if self.unit_norm else features
        return features if self.stride == STRIDE else doubled(features, pixels)

    def learned_at_all_scales(self, pixels: Tensor) -> Tensor:
        """Compute the learned features, those at half scale among them, in cells of 4 pixels."""
        return at_two_sizes(self.learned, pixels, self.coarse_share)

    def append_colours(self, features: Tensor, pixels: Tensor) -> Tensor:
        """Append the raw colours to learned features."""
        if not self.colour_share:
            return features
        means = self.means(F.pad(pixels, COLOUR_PADDING, mode="replicate"))
        return with_colours(features, self.neighbours(means), self.colour_share)

    def forward(self, frame: Tensor) -> Tensor:
        pixels = frame.float().permute(0, 3, 1, 2)  # cast before the transpose: TensorRT does not transpose uint8
        features = self.append_colours(self.learned_at_all_scales(pixels), pixels)
        return features.half() if self.half_precision else features


class EncoderPair(nn.Module):
    """Two encoders whose learned features are concatenated: [B, 3, H, W] -> [B, channels, ceil(H / 4), ceil(W / 4)].

    share: weight of the second encoder's features among the learned features, so that a dot product is the weighted
           mean of both encoders' dot products. Raw colours are the first encoder's.

    Raises InputError for features that are not of unit length, and for a weight that leaves one encoder unused.
    """

    def __init__(self, first: Encoder, second: Encoder, share: float) -> None:
        super().__init__()
        if not 0 < share < 1:
            raise InputError(f"expected a weight of the second encoder above 0 and below 1, got {share}")
        if not (first.config.unit_norm and second.config.unit_norm):
            raise InputError(
                "expected two encoders with features of unit length, got one of raw dot products; export it alone"
            )
        self.first, self.second, self.share = first, second, share
        self.channels = first.channels + second.learned_channels

    def forward(self, image: Tensor) -> Tensor:
        return self.first.append_colours(_learned_of_both(self.first, self.second, image, self.share), image)


class FrameEncoderPair(nn.Module):
    """EncoderPair for inference, with input, output and precision of FrameEncoder."""

    def __init__(self, pair: EncoderPair, half: bool = False) -> None:
        super().__init__()
        self.first, self.second = FrameEncoder(pair.first, half), FrameEncoder(pair.second, half)
        self.share, self.half_precision = pair.share, half

    def forward(self, frame: Tensor) -> Tensor:
        pixels = frame.float().permute(0, 3, 1, 2)
        features = self.first.append_colours(_learned_of_both(self.first, self.second, pixels, self.share), pixels)
        return features.half() if self.half_precision else features


def _learned_of_both(
    first: Encoder | FrameEncoder, second: Encoder | FrameEncoder, image: Tensor, share: float
) -> Tensor:
    return side_by_side(first.learned_at_all_scales(image), second.learned_at_all_scales(image), share)


class _FusedBlock(nn.Module):
    """Residual block without batch normalisation."""

    def __init__(self, block: ResidualBlock) -> None:
        super().__init__()
        self.conv1, self.conv2 = _fused(block.conv1, block.norm1), _fused(block.conv2, block.norm2)
        self.shortcut = block.shortcut
        if isinstance(block.shortcut, nn.Sequential):
            self.shortcut = _fused(*block.shortcut)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


def _fused(conv: nn.Module, norm: nn.Module) -> nn.Conv2d:
    """Fold a batch normalisation into its convolution."""
    assert isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d)
    fused = nn.Conv2d(
        conv.in_channels,
        conv.out_channels,
        conv.kernel_size,  # pyright: ignore[reportArgumentType]
        conv.stride,  # pyright: ignore[reportArgumentType]
        conv.padding,  # pyright: ignore[reportArgumentType]
    )
    assert norm.running_mean is not None and norm.running_var is not None
    weight, bias = fuse_conv_bn_weights(
        conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
    )
    fused.weight, fused.bias = weight, bias
    return fused.requires_grad_(False)


# With a smaller range, torch.export fails on features at half scale, and traces again in a range of its own. The graph
# is the same.
_TRACED_MIN = 17


def encode_model(encoder: Encoder | EncoderPair, half: bool = False) -> onnx.ModelProto:
    """Export frame [1, height, width, 3] uint8, BGR -> features [1, C, ceil(height / 4), ceil(width / 4)] float32.

    half: convolutions and features in float16, see FrameEncoder
    """
    example = torch.zeros(1, 90, 122, 3, dtype=torch.uint8)
    free = {1: torch.export.Dim("height", min=_TRACED_MIN), 2: torch.export.Dim("width", min=_TRACED_MIN)}
    program = torch.onnx.export(
        FrameEncoderPair(encoder, half) if isinstance(encoder, EncoderPair) else FrameEncoder(encoder, half),
        (example,),
        input_names=["frame"],
        output_names=["features"],
        dynamic_shapes=(free,),
        opset_version=onnx_function.OPSET,
        dynamo=True,
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    model.ir_version = min(model.ir_version, IR_VERSION)
    model.producer_name = "corrflow"
    # The exporter's metadata (source lines, module names) enlarges the file and is of no use.
    del model.metadata_props[:]
    graph = model.graph
    for item in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del item.metadata_props[:]
        item.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    return model
