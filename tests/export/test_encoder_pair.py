"""Two encoders in one artifact: dot products are the weighted mean, and the origin of both is kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from corrflow.errors import InputError
from corrflow.export.cli import app
from corrflow.export.encoder_graph import EncoderPair
from corrflow.runtime.artifacts.artifact import DESCRIPTION, ENCODE, load_artifact
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.model import new_encoder, normalise, of_unit_length
from corrflow.train.trainer import Trainer

FINE = ModelConfig(widths=(4, 4, 4, 4), feature_channels=8)
WIDE_CELLS = ModelConfig(widths=(4, 4, 4, 8), feature_channels=16, stride=8, feature_norm=True)


def write_run(folder: Path, model: ModelConfig, seed: int) -> str:
    trainer = Trainer.create(model, TrainConfig(colours=4, threads=1, seed=seed), torch.zeros(4, 3))
    trainer.encoder.cells(torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))  # fills statistics
    save_checkpoint(folder / FILE_NAME, trainer.checkpoint(seed, {"minutes": 1.5}))
    return str(folder)


def similarities(features: torch.Tensor) -> torch.Tensor:
    """Return the dot products [h, w, h, w] of all cells of features [1, C, h, w]."""
    return torch.einsum("chw,cij->hwij", features[0], features[0])


def test_similarities_of_the_artifact_are_the_weighted_mean(tmp_path: Path) -> None:
    """0.2 raw colours; of the other 0.8, 0.3 are the second encoder's and 0.7 the first's, half of them coarse."""
    first, second = write_run(tmp_path / "first", FINE, 1), write_run(tmp_path / "second", WIDE_CELLS, 2)
    options = ["--colour-share", "0.2", "--coarse-share", "0.5", "--size", "64x80", "--radius", "2"]
    arguments = ["onnx", first, str(tmp_path / "both"), "--beside", second, "--beside-share", "0.3", *options]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    artifact = load_artifact(tmp_path / "both")
    assert artifact.channels == 2 * 8 + 16 + 27
    beside = artifact.provenance["beside"]
    assert beside["share"] == 0.3 and beside["steps"] == 2 and beside["model"]["stride"] == 8
    assert artifact.provenance["steps"] == 1 and artifact.provenance["model"]["coarse_share"] == 0.5

    frame = torch.randint(0, 256, (1, 38, 50, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    image = normalise(frame.flip(3).permute(0, 3, 1, 2).float() / 255)
    session = onnxruntime.InferenceSession(artifact.files[ENCODE], providers=["CPUExecutionProvider"])
    got = torch.from_numpy(np.asarray(session.run(None, {"frame": frame.numpy()})[0]))
    saved = load_checkpoint(Path(first))
    shares = {"colour_share": 0.2, "coarse_share": 0.5}
    with torch.inference_mode():
        alone = replace(saved, model=replace(FINE, **shares)).encoder()(image)
        other = load_checkpoint(Path(second)).encoder()(image)
    learned, colours = (of_unit_length(part) for part in alone.split([16, 27], 1))
    colours = alone[:, 16:] / 0.2**0.5
    expected = 0.2 * similarities(colours) + 0.8 * (0.7 * similarities(learned) + 0.3 * similarities(other))
    torch.testing.assert_close(similarities(got), expected, atol=1e-4, rtol=0)


def test_another_run_takes_the_weights_of_a_pair(tmp_path: Path) -> None:
    """In the pair, the first half of the learned features is at half size, the second at full size."""
    first, second = write_run(tmp_path / "first", FINE, 1), write_run(tmp_path / "second", FINE, 2)
    options = ["--colour-share", "0.2", "--coarse-share", "1", "--size", "64x80", "--radius", "2"]
    pair, alone = str(tmp_path / "pair"), str(tmp_path / "alone")
    for arguments in (
        [first, pair, "--beside", second, "--beside-share", "0.5", *options],
        [second, alone, "--settings-from", pair, "--size", "64x80"],
    ):
        done = CliRunner().invoke(app, ["onnx", *arguments])
        assert done.exit_code == 0, done.output
    artifact = load_artifact(tmp_path / "alone")
    shares = artifact.provenance["model"]
    assert (shares["colour_share"], shares["coarse_share"]) == (0.2, 0.5) and artifact.channels == 2 * 8 + 27
    description = tmp_path / "pair" / DESCRIPTION
    description.write_text(description.read_text().replace('"share": 0.5', '"share": "half"'))
    done = CliRunner().invoke(app, ["onnx", second, str(tmp_path / "b"), "--settings-from", pair])
    assert done.exit_code == 2 and "expected weights of colours" in done.output


def test_pairs_that_make_no_score_are_refused(tmp_path: Path) -> None:
    encoder = new_encoder(FINE, 0)
    for share in (0.0, 1.0):
        with pytest.raises(InputError, match="above 0 and below 1"):
            EncoderPair(encoder, encoder, share)
    with pytest.raises(InputError, match="features of unit length"):
        EncoderPair(encoder, new_encoder(replace(FINE, unit_norm=False), 0), 0.5)
    done = CliRunner().invoke(app, ["onnx", "random-init:quarter", str(tmp_path / "a"), "--beside-share", "0.5"])
    assert "--beside RUN" in str(done.output) + str(done.exception) and done.exit_code != 0


@pytest.mark.faults
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_the_export_of_a_diverged_run_is_refused_in_one_sentence(tmp_path: Path, value: float) -> None:
    run = write_run(tmp_path / "run", FINE, 1)
    checkpoint = load_checkpoint(Path(run))
    for state in (checkpoint.model_state, checkpoint.ema):
        for weights in state.values():
            if weights.is_floating_point():
                weights.view(-1)[0] = value
    save_checkpoint(Path(run) / FILE_NAME, checkpoint)
    done = CliRunner().invoke(app, ["onnx", run, str(tmp_path / "artifact"), "--size", "64x80"])
    assert done.exit_code == 2 and "expected finite weights" in done.output and "diverged" in done.output
    assert not (tmp_path / "artifact").exists()
