"""Colour as a classification target, and the information bottleneck on the input (paper, sections 3.2 and 3.5)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.train.model import STRIDE, normalise


def rgb_to_lab(image: Tensor) -> Tensor:
    """sRGB 0..1 [..., 3, H, W] -> CIE Lab (D65): L 0..100, a and b about -110..110."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    r, g, b = linear.unbind(-3)
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    fx, fy, fz = (
        torch.where(t > 216 / 24389, t.clamp(min=1e-9) ** (1 / 3), (24389 / 27 * t + 16) / 116) for t in (x, y, z)
    )
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -3)


def fit_colour_codebook(pictures: list[np.ndarray], colours: int, lightness: bool, seed: int) -> Tensor:
    """K-means centroids over training pictures, in Lab or in its (a, b) plane (paper, section 3.5).

    pictures: [H, W, 3] uint8, RGB; returns [colours, 3] float32, or [colours, 2] without lightness.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    generator = np.random.default_rng(seed)
    samples = []
    for picture in pictures:
        lab = rgb_to_lab(torch.from_numpy(picture).permute(2, 0, 1).float() / 255)
        pixels = (lab if lightness else lab[1:]).flatten(1).T.numpy()
        samples.append(pixels[generator.choice(len(pixels), min(len(pixels), 400), replace=False)])
    with threadpool_limits(1):  # or its sums, and with them the classes, would depend on the number of threads
        fitted = KMeans(colours, n_init=4, random_state=seed).fit(np.concatenate(samples))  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(fitted.cluster_centers_.astype(np.float32))


def colour_classes(lab: Tensor, codebook: Tensor) -> Tensor:
    """Nearest centroid of each pixel: Lab [B, 3, H, W], codebook [K, 2 or 3] -> [B, H, W] int64, 0..K-1."""
    B, _, H, W = lab.shape
    channels = codebook.shape[1]
    pixels = lab[:, -channels:].permute(0, 2, 3, 1).reshape(-1, channels)
    # |p - c|^2 without |p|^2, which does not move the minimum: one small matrix product.
    distance = (codebook.square().sum(1) / 2).addmm(pixels, codebook.T, alpha=-1)
    return distance.argmin(1).reshape(B, H, W)


def cell_colours(lab: Tensor, codebook: Tensor) -> Tensor:
    """One-hot classes of the mean colour of each 4x4 cell: Lab [B, 3, H, W] -> [B, K, H / 4, W / 4] float32."""
    classes = colour_classes(F.avg_pool2d(lab, STRIDE), codebook)
    return F.one_hot(classes, len(codebook)).permute(0, 3, 1, 2).to(lab.dtype)


def draw_bottleneck(
    generator: np.random.Generator, frames: int, dropout: float, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    """What the input of one clip goes through (paper, section 3.2): factors [3, frames] and channels [3], float32.

    factors:  of every frame's brightness, contrast and saturation, at most `jitter` from one
    channels: what each channel is multiplied by, the same in all frames: with probability `dropout` one or two are
              zeroed and the rest scaled up so that the sum keeps its size
    """
    factors = generator.uniform(1 - jitter, 1 + jitter, (3, frames)).astype(np.float32)
    channels = np.ones(3, np.float32)
    if generator.random() < dropout:
        missing = generator.choice(3, generator.integers(1, 3), replace=False)
        channels[missing] = 0
        channels *= 3 / (3 - len(missing))
    return factors, channels


def bottlenecked(clips: Tensor, factors: Tensor, channels: Tensor, grey_input: bool = False) -> Tensor:
    """The encoder's training input: jittered, then with colour channels missing, or all grey.

    clips [B, T, 3, H, W] RGB 0..1; factors [B, 3, T] and channels [B, 3] as `draw_bottleneck` has them for each clip
    -> the clips' shape, normalised
    """
    brightness, contrast, saturation = factors.permute(1, 0, 2)[..., None, None, None]
    clips = clips * brightness
    means = clips.mean((2, 3, 4), keepdim=True)
    clips = (clips - means) * contrast + means
    luma = (clips * clips.new_tensor([0.299, 0.587, 0.114]).reshape(3, 1, 1)).sum(2, keepdim=True)
    if grey_input:
        return normalise(luma.clamp(0, 1).expand_as(clips))
    clips = (luma + (clips - luma) * saturation).clamp(0, 1)
    return normalise(clips) * channels[:, None, :, None, None]
