"""Colour classes as the target, and the information bottleneck on the input (paper, sections 3.2 and 3.5)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from corrflow.train.model import STRIDE, normalise


def rgb_to_lab(image: Tensor) -> Tensor:
    """Convert sRGB 0..1 [..., 3, H, W] to CIE Lab (D65): L 0..100, a and b about -110..110."""
    linear = torch.where(image <= 0.04045, image / 12.92, ((image + 0.055) / 1.055) ** 2.4)
    r, g, b = linear.unbind(-3)
    x = (0.4124564 * r + 0.3575761 * g + 0.1804375 * b) / 0.95047
    y = 0.2126729 * r + 0.7151522 * g + 0.0721750 * b
    z = (0.0193339 * r + 0.1191920 * g + 0.9503041 * b) / 1.08883
    fx, fy, fz = (
        torch.where(t > 216 / 24389, t.clamp(min=1e-9) ** (1 / 3), (24389 / 27 * t + 16) / 116) for t in (x, y, z)
    )
    return torch.stack([116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)], -3)


def fit_colour_codebook(frames: list[np.ndarray], colours: int, lightness: bool, seed: int) -> Tensor:
    """Compute K-means centroids of the colours of training frames (paper, section 3.5).

    frames: [H, W, 3] uint8, RGB. Returns [colours, 3] float32 in Lab, or [colours, 2] in its (a, b) plane.
    """
    from sklearn.cluster import KMeans
    from threadpoolctl import threadpool_limits

    generator = np.random.default_rng(seed)
    samples = []
    for frame in frames:
        lab = rgb_to_lab(torch.from_numpy(frame).permute(2, 0, 1).float() / 255)
        pixels = (lab if lightness else lab[1:]).flatten(1).T.numpy()
        samples.append(pixels[generator.choice(len(pixels), min(len(pixels), 400), replace=False)])
    with threadpool_limits(1):  # else its sums, and so the classes, depend on the number of threads
        fitted = KMeans(colours, n_init=4, random_state=seed).fit(np.concatenate(samples))  # pyright: ignore[reportArgumentType]
    return torch.from_numpy(fitted.cluster_centers_.astype(np.float32))


def colour_classes(lab: Tensor, codebook: Tensor) -> Tensor:
    """Assign each pixel to its nearest centroid: Lab [B, 3, H, W], codebook [K, 2 or 3] -> [B, H, W] int64, 0..K-1."""
    B, _, H, W = lab.shape
    channels = codebook.shape[1]
    pixels = lab[:, -channels:].permute(0, 2, 3, 1).reshape(-1, channels)
    # |p - c|^2 without |p|^2, which does not change the minimum: one small matrix product.
    distance = (codebook.square().sum(1) / 2).addmm(pixels, codebook.T, alpha=-1)
    return distance.argmin(1).reshape(B, H, W)


def cell_colours(lab: Tensor, codebook: Tensor) -> Tensor:
    """Compute one-hot classes of 4x4 cells' mean colours: Lab [B, 3, H, W] -> [B, K, H / 4, W / 4] float32."""
    classes = colour_classes(F.avg_pool2d(lab, STRIDE), codebook)
    numbers = torch.arange(len(codebook), device=classes.device).view(1, -1, 1, 1)
    return (classes.unsqueeze(1) == numbers).to(lab.dtype)


def sample_bottleneck(
    generator: np.random.Generator, frames: int, dropout: float, jitter: float
) -> tuple[np.ndarray, np.ndarray]:
    """Sample the augmentation of one clip's input (paper, section 3.2): factors [3, frames], channels [3], float32.

    factors:  brightness, contrast and saturation of every frame, from 1 - jitter to 1 + jitter
    channels: factor of each colour channel in all frames. With probability `dropout` one or two channels are zeroed
              and the others are scaled up, so that the sum keeps its size.
    """
    factors = generator.uniform(1 - jitter, 1 + jitter, (3, frames)).astype(np.float32)
    channels = np.ones(3, np.float32)
    if generator.random() < dropout:
        missing = generator.choice(3, generator.integers(1, 3), replace=False)
        channels[missing] = 0
        channels *= 3 / (3 - len(missing))
    return factors, channels


def apply_bottleneck(clips: Tensor, factors: Tensor, channels: Tensor, grey_input: bool = False) -> Tensor:
    """Compute the encoder's training input: jittered clips with missing colour channels, or grey clips.

    clips [B, T, 3, H, W] RGB 0..1; factors [B, 3, T] and channels [B, 3] of `sample_bottleneck` for each clip.
    Returns normalised clips of the same shape.
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
