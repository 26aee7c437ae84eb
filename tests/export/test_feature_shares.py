"""What stands beside the learned features, raw colours and features at half size: what it is, and that it counts as
much as it should."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corrflow.errors import InputError
from corrflow.train.config import ModelConfig, preset
from corrflow.train.model import OPPONENT_WEIGHT, Encoder, at_two_sizes, normalise

SMALL = ModelConfig(widths=(4, 4, 4, 4), feature_channels=8)


def expected_colours(image: np.ndarray) -> np.ndarray:
    """[H, W, 3] RGB 0..1 -> [27, h, w] of unit length, cell by cell, in another way than by convolution."""
    height, width = image.shape[:2]
    h, w = -(-height // 4), -(-width // 4)
    padded = np.pad(image.astype(np.float64) - 0.45, ((4, 8), (4, 8), (0, 0)), mode="edge")
    red, green, blue = padded[..., 0], padded[..., 1], padded[..., 2]
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    opponents = [light, OPPONENT_WEIGHT * (red - green), OPPONENT_WEIGHT * ((red + green) / 2 - blue)]
    result = np.empty((27, h, w))
    for y in range(h):
        for x in range(w):
            cell = []
            for j in range(3):
                for i in range(3):
                    own = np.s_[4 * (y + j) : 4 * (y + j) + 4, 4 * (x + i) : 4 * (x + i) + 4]
                    cell += [opponent[own].mean() for opponent in opponents]
            result[:, y, x] = cell / np.sqrt(np.sum(np.square(cell)) + 1e-4)
    return result


@settings(max_examples=15, deadline=None)
@given(height=st.integers(8, 33), width=st.integers(8, 33), seed=st.integers(0, 99))
def test_colours_are_the_means_of_the_cells_around(height: int, width: int, seed: int) -> None:
    image = np.random.default_rng(seed).random((height, width, 3), np.float32)
    share = 0.36
    with torch.inference_mode():
        encoder = Encoder(replace(SMALL, colour_share=share)).eval()
        features = encoder(normalise(torch.from_numpy(image).permute(2, 0, 1)[None]))[0].numpy()
    assert features.shape[0] == encoder.channels == 8 + 27
    np.testing.assert_allclose(features[8:], share**0.5 * expected_colours(image), atol=1e-5)


def test_learned_features_keep_their_share() -> None:
    torch.manual_seed(0)
    plain = Encoder(SMALL).eval()
    coloured = Encoder(replace(SMALL, colour_share=0.36)).eval()
    coloured.load_state_dict(plain.state_dict())  # the colours have no weights
    image = torch.rand(1, 3, 21, 34)
    with torch.inference_mode():
        torch.testing.assert_close(coloured(image)[:, :8], 0.8 * plain(image))


@pytest.mark.parametrize(("share", "unit_norm"), [(1.0, True), (-0.1, True), (0.5, False)])
def test_a_share_that_makes_no_sense_is_refused(share: float, unit_norm: bool) -> None:
    with pytest.raises(InputError, match="colour share from 0 to below 1"):
        ModelConfig(unit_norm=unit_norm, colour_share=share)


def test_presets_are_the_paper_s() -> None:
    assert preset("quarter").colour_share == 0


@pytest.mark.parametrize("size", [(64, 96), (61, 83), (62, 85)], ids=str)
def test_features_at_half_size_lie_on_the_cells_of_the_whole_picture(size: tuple[int, int]) -> None:
    """A smooth picture has nearly the same features at either size where the encoder only looks at brightness."""
    height, width = size
    whole = torch.linspace(0, 1, width).expand(1, 3, height, width)

    def brightness(image: torch.Tensor) -> torch.Tensor:
        mean = torch.nn.functional.avg_pool2d(image[:, :1], 4, ceil_mode=True)
        return torch.cat([mean.cos(), mean.sin()], 1)

    fine, coarse = at_two_sizes(brightness, whole, 0.0), at_two_sizes(brightness, whole, 1.0)
    assert coarse.shape == fine.shape == (1, 2, -(-height // 4), -(-width // 4))
    torch.testing.assert_close(coarse[..., 1:-4], fine[..., 1:-4], atol=2e-3, rtol=0)
    both = at_two_sizes(brightness, whole, 0.3)
    product = torch.einsum("bchw,bcij->bhwij", both, both)
    parts = [torch.einsum("bchw,bcij->bhwij", part, part) for part in (fine, coarse)]
    torch.testing.assert_close(product, 0.7 * parts[0] + 0.3 * parts[1])


@pytest.mark.parametrize(("unit_norm", "share"), [(True, 1.1), (True, -0.1), (False, 0.5)])
def test_coarse_shares_that_make_no_score_are_refused(unit_norm: bool, share: float) -> None:
    with pytest.raises(InputError, match="coarse share"):
        ModelConfig(unit_norm=unit_norm, coarse_share=share)
