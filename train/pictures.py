"""Pictures of what a run has learned: copied colours, features as colours, and where features match."""

from __future__ import annotations

import cv2
import numpy as np
import torch
from torch import Tensor

from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.plugins.local_soft_copy.torch_blocked import local_soft_copy
from corrflow.train.model import STRIDE

MATCH_EVERY = 6  # cells between the matches that are drawn


def reconstruction_picture(clips: np.ndarray, lab: Tensor, copied: Tensor, codebook: Tensor) -> np.ndarray:
    """For up to four clips, one row each: frame 0, the true last frame, and the last frame in copied colours.

    Returns [rows * S, 3 * S, 3] uint8, RGB. Where the classes have no lightness, it is the true one that is shown.
    """
    rows = []
    for clip in range(min(4, len(copied))):
        colours = torch.einsum("khw,kc->chw", copied[clip, -1].detach(), codebook)
        colours = torch.nn.functional.interpolate(colours[None], size=lab.shape[-2:], mode="bilinear")[0]
        recoloured = torch.cat([lab[clip, -1, : 3 - len(colours)], colours]).permute(1, 2, 0).contiguous().cpu().numpy()
        rgb = cv2.cvtColor(recoloured.astype(np.float32), cv2.COLOR_Lab2RGB)
        shown = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
        rows.append(np.concatenate([clips[clip, 0], clips[clip, -1], shown], 1))
    return np.concatenate(rows, 0)


def feature_picture(frames: np.ndarray, features: Tensor) -> np.ndarray:
    """A clip above its features, whose three main directions of variation over the clip are red, green and blue.

    frames [T, S, S, 3] uint8, RGB; features [T, C, S / 4, S / 4] -> [2 * S, T * S, 3] uint8, RGB.
    """
    T, C, h, w = features.shape
    cells = features.permute(0, 2, 3, 1).reshape(-1, C).double()
    centred = cells - cells.mean(0)
    _, directions = torch.linalg.eigh(centred.T @ centred)  # in rising order
    main = centred @ directions[:, -3:].flip(1)
    # Outliers would leave everything else grey.
    low, high = (torch.quantile(main, share, dim=0) for share in (0.01, 0.99))
    shares = ((main - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    colours = (shares * 255).round().to(torch.uint8).reshape(T, h, w, 3).numpy()
    large = colours.repeat(STRIDE, 1).repeat(STRIDE, 2)
    return np.concatenate([np.concatenate(list(frames), 1), np.concatenate(list(large), 1)], 0)


def match_picture(frames: np.ndarray, features: Tensor, radius: int) -> np.ndarray:
    """Frames 0 and 1 side by side, and lines from cells of frame 1 to where in frame 0 their affinity is highest.

    frames [T, S, S, 3] uint8, RGB; features [T, C, S / 4, S / 4] -> [S, 2 * S, 3] uint8, RGB.
    """
    rows, columns = best_matches(features[1], features[0], radius)
    S = frames.shape[1]
    picture = np.ascontiguousarray(np.concatenate([frames[0], frames[1]], 1))
    h, w = rows.shape
    for x in range(MATCH_EVERY // 2, w, MATCH_EVERY):
        # One row lower from column to column, or still pictures would have their lines on top of each other.
        for y in range(x // MATCH_EVERY % MATCH_EVERY, h, MATCH_EVERY):
            hue = np.array([[[round(179 * x / w), 255, 255]]], np.uint8)
            colour = tuple(int(value) for value in cv2.cvtColor(hue, cv2.COLOR_HSV2RGB)[0, 0])
            # The centre of cell i is at pixel 4i + 1.5.
            here = (S + round(STRIDE * x + 1.5), round(STRIDE * y + 1.5))
            there = (round(STRIDE * float(columns[y, x]) + 1.5), round(STRIDE * float(rows[y, x]) + 1.5))
            cv2.line(picture, there, here, colour, 1, cv2.LINE_AA)
            for end in (there, here):
                cv2.circle(picture, end, 1, colour, -1)
    return picture


def best_matches(query: Tensor, keys: Tensor, radius: int) -> tuple[Tensor, Tensor]:
    """Row and column [h, w] of the cell in the window whose key matches best; query, keys [C, h, w]."""
    h, w = query.shape[-2:]
    places = torch.stack(torch.meshgrid(torch.arange(h), torch.arange(w), indexing="ij")).to(query)
    # Copying coordinates from the single best score gives the peak itself.
    copied = local_soft_copy(query[None], keys[None, None], places[None, None], Attributes((radius,), top_k=1))[0]
    return copied[0], copied[1]
