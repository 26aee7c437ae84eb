"""Images of predicted colours, features and matches for training logs."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.plugins.local_soft_copy.torch_blocked import local_soft_copy
from corrflow.train.model import STRIDE

MATCH_EVERY = 6  # cells between drawn matches


def reconstruction_image(clips: np.ndarray, lab: Tensor, predicted: Tensor, codebook: Tensor) -> np.ndarray:
    """Draw up to four clips as rows of frame 0, the last frame, and the last frame in predicted colours.

    Returns [rows * S, 3 * S, 3] uint8, RGB. Classes without lightness are drawn with the true lightness.
    """
    rows = []
    for clip in range(min(4, len(predicted))):
        colours = torch.einsum("khw,kc->chw", predicted[clip, -1].detach(), codebook)
        colours = torch.nn.functional.interpolate(colours[None], size=lab.shape[-2:], mode="bilinear")[0]
        recoloured = torch.cat([lab[clip, -1, : 3 - len(colours)], colours]).permute(1, 2, 0).contiguous().cpu().numpy()
        rgb = cv2.cvtColor(recoloured.astype(np.float32), cv2.COLOR_Lab2RGB)
        image = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
        rows.append(np.concatenate([clips[clip, 0], clips[clip, -1], image], 1))
    return np.concatenate(rows, 0)


def feature_image(frames: np.ndarray, features: Tensor) -> np.ndarray:
    """Draw a clip above its features; the first three principal components are red, green and blue.

    frames [T, S, S, 3] uint8, RGB; features [T, C, S / 4, S / 4] -> [2 * S, T * S, 3] uint8, RGB.
    """
    T, C, h, w = features.shape
    cells = features.permute(0, 2, 3, 1).reshape(-1, C).double()
    centred = cells - cells.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # ascending
    main = centred @ directions[:, -3:].flip(1)
    # Quantiles, because outliers would leave all other values grey.
    low, high = (torch.quantile(main, share, dim=0) for share in (0.01, 0.99))
    scaled = ((main - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours = (scaled * 255).round().to(torch.uint8).reshape(T, h, w, 3).numpy()
    upscaled = colours.repeat(STRIDE, 1).repeat(STRIDE, 2)
    return np.concatenate([np.concatenate(list(frames), 1), np.concatenate(list(upscaled), 1)], 0)


def match_image(frames: np.ndarray, features: Tensor, radius: int) -> np.ndarray:
    """Draw frames 0 and 1 side by side, with lines from cells of frame 1 to their best matches in frame 0.

    frames [T, S, S, 3] uint8, RGB; features [T, C, S / 4, S / 4] -> [S, 2 * S, 3] uint8, RGB.
    """
    rows, columns = best_matches(features[1], features[0], radius)
    S = frames.shape[1]
    image = np.ascontiguousarray(np.concatenate([frames[0], frames[1]], 1))
    h, w = rows.shape
    for x in range(MATCH_EVERY // 2, w, MATCH_EVERY):
        # One row lower from column to column, so that lines of static clips do not overlap.
        for y in range(x // MATCH_EVERY % MATCH_EVERY, h, MATCH_EVERY):
            hue = np.array([[[round(179 * x / w), 255, 255]]], np.uint8)
            colour = tuple(int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
            # The centre of cell i is at pixel 4i + 1.5.
            end = (S + round(STRIDE * x + 1.5), round(STRIDE * y + 1.5))
            start = (round(STRIDE * float(columns[y, x]) + 1.5), round(STRIDE * float(rows[y, x]) + 1.5))
            cv2.line(image, start, end, colour, 1, cv2.LINE_AA)
            for point in (start, end):
                cv2.circle(image, point, 1, colour, -1)
    return image


def best_matches(query: Tensor, keys: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Return row and column [h, w] of the best matching key in the window of each cell; query, keys [C, h, w]."""
    h, w = query.shape[-2:]
    positions = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).to(query)
    # With top-1, the copied coordinates are those of the best match.
    best = local_soft_copy(query[None], keys[None, None], positions[None, None], Attributes((radius,), top_k=1))[0]
    return best[0], best[1]
