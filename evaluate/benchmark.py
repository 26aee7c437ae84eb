"""Time of scoring masks, compared to a direct implementation of J and F with SciPy.

    python -m corrflow.evaluate.benchmark DAVIS --split dev

Both read the same PNGs, with the true mask of the previous frame as prediction. The benchmark fails where values differ
by more than 1e-12. It uses one process with one thread.
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
from corrflow.evaluate.data_sets import davis_data
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.methods.methods import Predictions
from corrflow.evaluate.metrics.masks import OFFICIAL_BOUND
from corrflow.evaluate.metrics.scorer import score_sequence

AGREEMENT = 1e-12


def reference_scores(sequence: MaskSequence, folder: Path, dilate: Callable[..., np.ndarray]) -> np.ndarray:
    """Compute J and F [S, 2] of a sequence of one object by their definition, on whole images.

    dilate: (mask [H, W] bool, radius) -> [H, W] bool
    """
    scores = []
    for index in sequence.scored[1]:
        path = sequence.annotation_path(index)
        truth, predicted = (
            _first_channel(np.asarray(Image.open(file))) for file in (path, folder / sequence.name / path.name)
        )
        union = (predicted | truth).sum()
        region = (predicted & truth).sum() / union if union else 1.0
        radius = math.ceil(OFFICIAL_BOUND * np.linalg.norm(truth.shape))
        predicted_edge, true_edge = _edge(predicted), _edge(truth)
        if not predicted_edge.any() or not true_edge.any():
            scores.append((region, float(predicted_edge.any() == true_edge.any())))
            continue
        precision = (predicted_edge & dilate(true_edge, radius)).sum() / predicted_edge.sum()
        recall = (true_edge & dilate(predicted_edge, radius)).sum() / true_edge.sum()
        total = precision + recall
        scores.append((region, 2 * precision * recall / total if total else 0.0))
    return np.array(scores)


def _first_channel(image: np.ndarray) -> np.ndarray:
    # Some masks of DAVIS have an alpha channel.
    return (image[..., 0] if image.ndim == 3 else image) > 0


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


def corrflow_scores(sequence: MaskSequence, folder: Path) -> np.ndarray:
    """Compute J and F [S, 2] with the code of corrflow-eval score."""
    score = score_sequence(sequence, (prediction.mask for prediction in Predictions(folder).masks(sequence, 1)))[1]
    return np.stack([score.region_similarity, score.contour_accuracy], 1)


def write_predictions(sequence: MaskSequence, folder: Path) -> None:
    """Write the true mask of the previous frame as prediction for each frame."""
    (folder / sequence.name).mkdir()
    for index in range(len(sequence)):
        mask = sequence.annotation(max(index - 1, 0))
        cv2.imwrite(str(folder / sequence.name / f"{sequence.image_paths[index].stem}.png"), mask * 255)


def run(
    root: Annotated[Path, typer.Argument(metavar="ROOT", help="Data set in the layout of DAVIS, one object each.")],
    split: Annotated[str, typer.Option(help="List of sequences.")] = "dev",
    sequence: Annotated[list[str] | None, typer.Option(help="Only this sequence; repeat for several.")] = None,
) -> None:
    """Time the scoring of masks against SciPy."""
    with errors_reported():
        compare(root, split, sequence or [])


def compare(root: Path, split: str, names: list[str]) -> float:
    """Print the times, and return corrflow's time divided by the fastest other time.

    Raises CorrflowError where values differ.
    """
    data = davis_data(root, split, names=names)
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
                ("corrflow", lambda item=item: corrflow_scores(item, folder)),
                ("SciPy, footprint", lambda item=item: reference_scores(item, folder, _by_footprint)),
                ("SciPy, distance", lambda item=item: reference_scores(item, folder, _by_distance)),
            ):
                begin = time.perf_counter()
                values[name] = measure()
                seconds[name] += time.perf_counter() - begin
            difference = max(float(np.abs(value - values["corrflow"]).max()) for value in values.values())
            if not difference <= AGREEMENT:
                raise CorrflowError(f"expected the same scores for {item.name}, got a difference of {difference:g}")
    fastest = min(seconds["SciPy, footprint"], seconds["SciPy, distance"])
    for name, total in seconds.items():
        per_frame, ratio = 1000 * total / frames, total / seconds["corrflow"]
        print(f"{name:24} {total:7.2f} s  {per_frame:6.1f} ms per frame  {ratio:5.1f} x")
    print(f"{frames} frames of {len(data.sequences)} sequences; the same values to {AGREEMENT:g}")
    return seconds["corrflow"] / fastest


if __name__ == "__main__":
    typer.run(run)
