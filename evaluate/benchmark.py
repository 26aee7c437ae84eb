"""How long scoring takes, against a straightforward implementation: frame by frame with SciPy.

    python -m corrflow.evaluate.benchmark DAVIS --split dev

Both read the same PNGs of truth and prediction (the truth of the frame before) and give J and F of every scored frame;
the values have to agree to 1e-12, or the benchmark fails. One process, one thread each.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import cv2
import numpy as np
import typer
from PIL import Image

from corrflow.errors import CorrflowError, errors_reported
from corrflow.evaluate.commands import davis_data
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.methods.methods import Predictions
from corrflow.evaluate.metrics.masks import OFFICIAL_BOUND
from corrflow.evaluate.metrics.scorer import score_sequence

AGREEMENT = 1e-12


def straightforward(sequence: MaskSequence, folder: Path, dilate: Callable[..., np.ndarray]) -> np.ndarray:
    """J and F [S, 2] of a sequence of one object, written down from their definition for whole pictures.

    dilate: (mask [H, W] bool, radius) -> [H, W] bool
    """
    measured = []
    for index in sequence.scored[1]:
        path = sequence.annotation_path(index)
        truth, found = (
            _first_channel(np.asarray(Image.open(file))) for file in (path, folder / sequence.name / path.name)
        )
        union = (found | truth).sum()
        region = (found & truth).sum() / union if union else 1.0
        radius = math.ceil(OFFICIAL_BOUND * np.linalg.norm(truth.shape))
        found_edge, true_edge = _edge(found), _edge(truth)
        if not found_edge.any() or not true_edge.any():
            measured.append((region, float(found_edge.any() == true_edge.any())))
            continue
        precision = (found_edge & dilate(true_edge, radius)).sum() / found_edge.sum()
        recall = (true_edge & dilate(found_edge, radius)).sum() / true_edge.sum()
        both = precision + recall
        measured.append((region, 2 * precision * recall / both if both else 0.0))
    return np.array(measured)


def _first_channel(picture: np.ndarray) -> np.ndarray:
    # Some masks of DAVIS have a channel of opacity.
    return (picture[..., 0] if picture.ndim == 3 else picture) > 0


def _edge(mask: np.ndarray) -> np.ndarray:
    east, south, corner = mask.copy(), mask.copy(), mask.copy()
    east[:, :-1], south[:-1], corner[:-1, :-1] = mask[:, 1:], mask[1:], mask[1:, 1:]
    edge = (mask ^ east) | (mask ^ south) | (mask ^ corner)
    edge[-1], edge[:, -1] = mask[-1] ^ east[-1], mask[:, -1] ^ south[:, -1]
    edge[-1, -1] = False
    return edge


def _by_footprint(mask: np.ndarray, radius: int) -> np.ndarray:
    from scipy.ndimage import binary_dilation

    rows, columns = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return binary_dilation(mask, rows**2 + columns**2 <= radius**2)


def _by_distance(mask: np.ndarray, radius: int) -> np.ndarray:
    from scipy.ndimage import distance_transform_edt

    return np.asarray(distance_transform_edt(~mask)) <= radius


def ours(sequence: MaskSequence, folder: Path) -> np.ndarray:
    """J and F [S, 2] as corrflow-eval score computes them."""
    score = score_sequence(sequence, (made.mask for made in Predictions(folder).masks(sequence, 1)))[1]
    return np.stack([score.region_similarity, score.contour_accuracy], 1)


def write_predictions(sequence: MaskSequence, folder: Path) -> None:
    """For each frame the truth of the one before."""
    (folder / sequence.name).mkdir()
    for index in range(len(sequence)):
        mask = sequence.annotation(max(index - 1, 0))
        cv2.imwrite(str(folder / sequence.name / f"{sequence.image_paths[index].stem}.png"), mask * 255)


def run(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="A data set in the DAVIS layout, one object each.")],
    split: Annotated[str, typer.Option(help="List of sequences.")] = "dev",
    sequence: Annotated[list[str] | None, typer.Option(help="This one only; repeat for several.")] = None,
) -> None:
    """Time the scoring of masks against SciPy."""
    with errors_reported():
        compare(root, split, sequence or [])


def compare(root: Path, split: str, names: list[str]) -> float:
    """Print the times; returns ours as a share of the quicker straightforward one. Raises CorrflowError where values
    differ."""
    data = davis_data(root, split, None, "480p", names)
    cv2.setNumThreads(1)
    seconds = {"corrflow": 0.0, "SciPy, footprint": 0.0, "SciPy, distance": 0.0}
    frames = 0
    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for item in data.sequences:
            write_predictions(item, folder)
            frames += len(item.scored[1])
            values = {}
            for name, measure in (
                ("corrflow", lambda item=item: ours(item, folder)),
                ("SciPy, footprint", lambda item=item: straightforward(item, folder, _by_footprint)),
                ("SciPy, distance", lambda item=item: straightforward(item, folder, _by_distance)),
            ):
                begin = time.perf_counter()
                values[name] = measure()
                seconds[name] += time.perf_counter() - begin
            apart = max(float(np.abs(value - values["corrflow"]).max()) for value in values.values())
            if not apart <= AGREEMENT:
                raise CorrflowError(f"expected the same scores for {item.name}, got values {apart:g} apart")
    quicker = min(seconds["SciPy, footprint"], seconds["SciPy, distance"])
    for name, spent in seconds.items():
        print(
            f"{name:24} {spent:7.2f} s  {1000 * spent / frames:6.1f} ms a frame  {spent / seconds['corrflow']:5.1f} x"
        )
    print(f"{frames} frames of {len(data.sequences)} sequences; the same values to {AGREEMENT:g}")
    return seconds["corrflow"] / quicker


if __name__ == "__main__":
    typer.run(run)
