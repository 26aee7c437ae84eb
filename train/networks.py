"""Trained networks of a run: the encoder, and the heads of the objectives."""

from __future__ import annotations

from torch import Tensor, nn

from corrflow.train.distil import Distillation
from corrflow.train.frame_level import FrameLevel
from corrflow.train.model import Encoder
from corrflow.train.pixel_level import PixelLevel


class Networks(nn.Module):
    """All trained networks as one module, so that processes exchange gradients once per backward pass."""

    def __init__(
        self, encoder: Encoder, pixel: PixelLevel | None, frame: FrameLevel | None, distil: Distillation | None
    ) -> None:
        super().__init__()
        self.encoder, self.pixel, self.frame, self.distil = encoder, pixel, frame, distil

    def forward(
        self, images: Tensor | None, crops: Tensor | None, frame_crops: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        """Compute features of images, and features and predictions of both kinds of crops; None without an input.

        Returns features; features of crops, and predictions of the pixel-level objective and of distillation; features
        of frame crops, and predictions of the frame-level objective.
        """
        results = [None if images is None else self.encoder(images)]
        for inputs, objectives in ((crops, (self.pixel, self.distil)), (frame_crops, (self.frame,))):
            cells = None if inputs is None else self.encoder.cells(inputs)
            results += [
                cells,
                *(None if cells is None or heads is None else heads.predict(cells) for heads in objectives),
            ]
        return tuple(results)


def trained_parameters(
    encoder: Encoder, pixel: PixelLevel | None, frame: FrameLevel | None, distil: Distillation | None
) -> list[tuple[str, nn.Parameter]]:
    """Return the names and parameters that the optimiser changes."""
    parameters = list(encoder.named_parameters())
    for prefix, heads in (("pixel", pixel), ("frame", frame), ("distil", distil)):
        if heads is not None:
            parameters += [(f"{prefix}.{name}", parameter) for name, parameter in heads.named_parameters()]
    return [(name, parameter) for name, parameter in parameters if parameter.requires_grad]
