"""Encoder of an artifact, frame -> features, as a PyTorch module and as ONNX."""

from __future__ import annotations

import copy

import onnx
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights

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
    of_unit_length,
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
        self.unit_norm = encoder.config.unit_norm
        self.stem = _fused(encoder.stem, encoder.stem_norm)
        with torch.no_grad():
            weight = self.stem.weight / PIXEL_SCALE
            assert self.stem.bias is not None
            self.stem.bias -= weight.sum((1, 2, 3)) * PIXEL_MEAN
            self.stem.weight.copy_(weight.flip(1) / 255)
        self.blocks = nn.Sequential(*(_FusedBlock(block) for block in encoder.blocks))  # type: ignore[arg-type]
        self.head = encoder.head
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
        padded = F.pad(pixels, (2, 4, 2, 4), mode="replicate")
        x = F.relu(self.stem(padded.half() if self.half_precision else padded))
        features = self.head(self.blocks(x)).float()
        return of_unit_length(features) if self.unit_norm else features

    def forward(self, frame: Tensor) -> Tensor:
        pixels = frame.float().permute(0, 3, 1, 2)  # cast before the transpose: TensorRT does not transpose uint8
        features = at_two_sizes(self.learned, pixels, self.coarse_share)
        if self.colour_share:
            means = self.means(F.pad(pixels, COLOUR_PADDING, mode="replicate"))
            features = with_colours(features, self.neighbours(means), self.colour_share)
        return features.half() if self.half_precision else features


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


def encode_model(encoder: Encoder, half: bool = False) -> onnx.ModelProto:
    """Export frame [1, height, width, 3] uint8, BGR -> features [1, C, ceil(height / 4), ceil(width / 4)] float32.

    half: convolutions and features in float16, see FrameEncoder
    """
    example = torch.zeros(1, 90, 122, 3, dtype=torch.uint8)
    free = {1: torch.export.Dim("height", min=8), 2: torch.export.Dim("width", min=8)}
    program = torch.onnx.export(
        FrameEncoder(encoder, half),
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
