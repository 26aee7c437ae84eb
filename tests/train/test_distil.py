"""Distillation: the losses, teachers of every kind and several side by side, and runs with them."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from helpers.training import assert_same_states, train_whole_and_in_parts
from onnx import TensorProto, helper, numpy_helper

from corrflow.errors import InputError
from corrflow.runtime.artifacts.bundled import bundled_models
from corrflow.runtime.backends.onnx_encoder import OnnxEncoder
from corrflow.train import command as training
from corrflow.train import loop
from corrflow.train.checkpoint import FILE_NAME, load_checkpoint, save_checkpoint
from corrflow.train.config import ModelConfig, TrainConfig, preset
from corrflow.train.data.clips import ClipSampler, open_cache
from corrflow.train.data.frames import find_videos
from corrflow.train.distil import regression_loss, relation_loss
from corrflow.train.model import Encoder, new_encoder, normalise, of_unit_length
from corrflow.train.options import TrainOptions
from corrflow.train.teachers import CheckpointTeacher, TeacherRecord, Teachers, load_teachers
from corrflow.train.trainer import Trainer

SMALL = TrainConfig(
    steps=4, threads=1, objective="distil", pairs=4, pair_crop=32, pair_gap=1, image_share=0.0, colours=4,
    learning_rate=1e-3,
)  # fmt: skip
TINY = ModelConfig(widths=(8, 8, 8, 8), feature_channels=8, feature_norm=True)
ENCODER = OnnxEncoder(Path())


def teacher_of(encoder: Encoder, weight: float = 1.0) -> Teachers:
    record = TeacherRecord("teacher", "checkpoint", "0" * 64, weight, {})
    return Teachers([CheckpointTeacher(encoder.eval())], [record])


def wide(stride: int = 4, seed: int = 3) -> Encoder:
    """Build a teacher of another width and another number of channels than TINY."""
    return new_encoder(ModelConfig(widths=(8, 8, 8, 8), feature_channels=12, stride=stride), seed)


def pooling(path: Path, stride: int, batch: int | str = "batch", outputs: int = 1) -> Path:
    """Save an encoder that averages stride x stride pixels, and outputs the three means and their sum."""
    mix = np.concatenate([np.eye(3), np.ones((1, 3))]).astype(np.float32)[:, :, None, None]
    nodes = [
        helper.make_node("AveragePool", ["image"], ["mean"], kernel_shape=[stride] * 2, strides=[stride] * 2),
        helper.make_node("Conv", ["mean", "mix"], ["features"]),
    ]
    results = [("features", 4), ("mean", 3)][:outputs]
    graph = helper.make_graph(
        nodes,
        "pooling",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, "h", "w"])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, c, "r", "q"]) for name, c in results],
        [numpy_helper.from_array(mix, "mix")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, str(path))
    return path


def random_crops(count: int, side: int) -> tuple[np.ndarray, torch.Tensor]:
    """Return images [count, side, side, 3] uint8, RGB, and the same as normalised crops."""
    images = np.random.default_rng(0).integers(0, 256, (count, side, side, 3), np.uint8)
    return images, normalise(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255)


@pytest.fixture(scope="module")
def sampler(footage: Path) -> ClipSampler:
    return ClipSampler(open_cache(find_videos(footage / "videos"), 6.0, 64, footage / "cache"), None, SMALL)


def test_losses_are_those_of_a_loop_over_cells() -> None:
    generator = torch.Generator().manual_seed(0)
    features, targets = (
        of_unit_length(torch.randn(6, channels, 3, 4, generator=generator)).unflatten(0, (3, 2)) for channels in (5, 7)
    )
    expected = 0.0
    for pair in range(3):
        for here, there in ((0, 1), (1, 0)):
            for cell in range(12):
                probabilities = []
                for maps in (targets, features):
                    query, keys = maps[pair, here].flatten(1)[:, cell], maps[pair, there].flatten(1)
                    probabilities.append(torch.softmax(query @ keys / 0.1, 0))
                p, q = probabilities
                expected += float((p * (p / q).log()).sum()) / (3 * 2 * 12)
    assert relation_loss(features, targets, 0.1, 0).item() == pytest.approx(expected, rel=1e-4)
    assert regression_loss(features * 3, features).item() == pytest.approx(0, abs=1e-6)
    assert regression_loss(-features, features).item() == pytest.approx(2)


def test_the_same_matches_have_no_loss_whatever_the_directions_of_the_features() -> None:
    features = of_unit_length(torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(0)))
    turn, _ = torch.linalg.qr(torch.randn(8, 8, generator=torch.Generator().manual_seed(1)))
    turned = torch.einsum("dc,bchw->bdhw", turn, features).unflatten(0, (2, 2))
    features = features.unflatten(0, (2, 2))
    assert relation_loss(features, turned, 0.07, 0).item() == pytest.approx(0, abs=1e-5)
    # Every second cell is a query, the others at the next step.
    cut = torch.cat([features[..., :1], features[..., 1:].flip(4)], 4)
    assert relation_loss(features, cut, 0.07, 0) != relation_loss(features, cut, 0.07, 1)


@pytest.mark.parametrize(("student", "teacher"), [(4, 4), (4, 8), (8, 4)], ids=str)
def test_a_student_learns_the_features_of_a_wider_teacher(sampler: ClipSampler, student: int, teacher: int) -> None:
    """Both losses fall by half on one batch, with cells of the same and of another size."""
    config = replace(SMALL, steps=60, learning_rate=1e-2)
    teachers = teacher_of(wide(teacher))
    before = copy.deepcopy(teachers.state_dict())
    trainer = Trainer.create(replace(TINY, stride=student), config, torch.zeros(4, 3), teachers=teachers)
    (_, pairs, *_), results = loop.batch_loader(trainer, sampler)(0), []
    for _ in range(40):
        results.append(trainer.step(None, 0, pairs))
    assert results[-1].distil < 0.5 * results[0].distil
    assert results[-1].relation < 0.5 * results[0].relation
    assert results[0].losses(config).keys() == {"distil", "relation", "spread"}
    assert all(torch.equal(tensor, before[name]) for name, tensor in teachers.state_dict().items())
    assert pairs is not None
    clip = pairs.crops[0]
    assert torch.allclose(trainer.features(clip).square().sum(1), torch.ones(1))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_resumed_run_has_the_same_bits(
    sampler: ClipSampler, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    config = replace(SMALL, precision=precision, ema_decay=0.9)
    onnx_file = pooling(tmp_path / "pool.onnx", 8)
    save_teacher(tmp_path / "run", wide())
    one, two = train_whole_and_in_parts(
        tmp_path, TINY, config, sampler,
        teachers=lambda: load_teachers([str(onnx_file), str(tmp_path / "run")], [1.05, 1.0], ENCODER, 1),
    )  # fmt: skip
    assert_same_states(one, two, "model_state", "distil", "ema", "optimiser")
    assert one.distil["head.weight"].shape == (16, 8, 1, 1)
    logs = [json.loads(line) for line in (tmp_path / "parts" / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in logs] == [1, 2, 3] and all(math.isfinite(line["relation"]) for line in logs)


@pytest.mark.parametrize("batch", ["batch", 1, 4])
def test_an_onnx_teacher_has_its_own_stride_and_input(tmp_path: Path, batch: int | str) -> None:
    """Compare with means of pixels, for three images: as many as the graph allows are encoded at once."""
    path = pooling(tmp_path / "pool.onnx", 8, batch)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.25, 0.125)
    teachers = load_teachers([str(path)], [], replace(ENCODER, colours="bgr", mean=mean, std=std), 1)
    images, crops = random_crops(3, 32)
    pixels = (images[..., ::-1] / 255 - mean) / std
    means = pixels.reshape(3, 4, 8, 4, 8, 3).mean((2, 4)).transpose(0, 3, 1, 2)
    expected = torch.from_numpy(np.concatenate([means, means.sum(1, keepdims=True)], 1)).float()
    torch.testing.assert_close(teachers(crops, 8), of_unit_length(expected), atol=1e-5, rtol=1e-4)
    finer = torch.nn.functional.interpolate(expected, scale_factor=2.0, mode="bilinear")
    torch.testing.assert_close(teachers(crops, 4), of_unit_length(finer), atol=1e-5, rtol=1e-4)
    assert teachers.double().channels(32, 4) == 4
    (record,) = teachers.records
    assert (record.kind, record.sha256) == ("onnx", hashlib.sha256(path.read_bytes()).hexdigest())
    assert record.input["colours"] == "bgr"


def test_weights_are_those_of_the_teachers_features(tmp_path: Path) -> None:
    """The similarity of fused features is the mean of the teachers' similarities, with squared weights."""
    encoders = [wide(4, 1), wide(8, 2)]
    for number, encoder in enumerate(encoders):
        save_teacher(tmp_path / str(number), encoder)
    _, crops = random_crops(1, 32)
    assert load_teachers([str(tmp_path / "0")], [], ENCODER, 1).double().channels(32, 4) == 12
    fused, first, second = (
        load_teachers([str(tmp_path / name) for name in names], weights, ENCODER, 1)(crops, 4)[0].flatten(1)
        for names, weights in (("01", [2.0, 1.0]), ("0", []), ("1", [3.0]))
    )
    assert fused.shape == (24, 64)
    torch.testing.assert_close(fused.T @ fused, (4 * first.T @ first + second.T @ second) / 5)
    digests = {load_teachers([str(tmp_path / "0")], weights, ENCODER, 1).digest for weights in ([], [1.0], [2.0])}
    assert len(digests) == 2


def test_a_model_is_a_teacher_as_its_checkpoint_is(small_artifact: Path) -> None:
    _, crops = random_crops(2, 32)
    teachers = load_teachers([str(small_artifact)], [], ENCODER, 1)
    expected = teacher_of(new_encoder(preset("quarter"), 0))(crops, 4)
    torch.testing.assert_close(teachers(crops, 4), expected, atol=1e-4, rtol=1e-3)
    assert teachers.records[0].kind == "model"


def test_raw_colours_of_a_bundled_model_are_left_out() -> None:
    name = bundled_models()[0]
    assert load_teachers([name], [], ENCODER, 1).channels(32, 8) % 64 == 0


def save_teacher(run: Path, encoder: Encoder) -> None:
    trainer = Trainer.create(encoder.config, replace(SMALL, objective="reconstruction"), torch.zeros(4, 3))
    trainer.encoder.load_state_dict(encoder.state_dict())
    save_checkpoint(run / FILE_NAME, trainer.checkpoint(0, {}))


def foreign(path: Path) -> Path:
    model = onnx.load(str(pooling(path, 8)))
    model.graph.node[0].domain = "com.elsewhere"
    onnx.save(model, str(path))
    return path


def flat(path: Path) -> Path:
    model = onnx.load(str(pooling(path, 8)))
    model.graph.node[1].output[0] = "map"
    model.graph.node.append(helper.make_node("Flatten", ["map"], ["features"], axis=2))
    del model.graph.output[0].type.tensor_type.shape.dim[:]
    onnx.save(model, str(path))
    return path


def text(path: Path) -> Path:
    path.write_text("no model")
    return path


@pytest.mark.parametrize(
    ("create", "message"),
    [
        (lambda path: path, "expected an encoder as ONNX at"),
        (lambda path: path.with_suffix(""), "expected a teacher: a run"),
        (text, "t.onnx"),
        (foreign, "domain 'com.elsewhere'"),
        (lambda path: pooling(path, 8, outputs=2), "expected one output, a feature map, got 2"),
        (flat, "no features for crops of 32 pixels: .* expected a feature map with 4 axes"),
    ],
    ids=["no-file", "nothing", "text", "foreign", "outputs", "flat"],
)
def test_bad_teachers_are_refused_in_one_sentence(tmp_path: Path, create, message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        load_teachers([str(create(tmp_path / "t.onnx"))], [], ENCODER, 1).channels(32, 4)
    assert "\n" not in str(raised.value)


def test_wrong_weights_and_options_are_refused(tmp_path: Path) -> None:
    for weights in ([1.0], [1.0, 0.0], [1.0, math.nan]):
        with pytest.raises(InputError, match="--teacher-weight"):
            load_teachers(["quarter", "quarter"], weights, ENCODER, 1)
    run = {"data": "videos", "out": tmp_path / "run", "steps": 1}
    with pytest.raises(InputError, match="expected a --teacher with the objective distil"):
        TrainOptions(**run, task="distil").config("float32", 1)
    with pytest.raises(InputError, match="corrflow-train distil"):
        TrainOptions(**run, teacher=["quarter"]).config("float32", 1)
    with pytest.raises(InputError, match="expected distil or nothing"):
        TrainOptions(**run, task="distill", teacher=["quarter"]).config("float32", 1)
    config = TrainOptions(**run, task="distil", teacher=["quarter"]).config("float32", 1)
    assert (config.objective, config.pair_gap, config.learning_rate) == ("distil", 3, 1e-3)
    assert TrainOptions(**run, objective="pixel").config("float32", 1).pair_gap == 0


def command(footage: Path, out: Path, *options: str) -> list[str]:
    return [
        sys.executable, "-m", "corrflow.train.cli", "distil", "--data", str(footage / "videos"), "--out", str(out),
        "--cache", str(footage / "cache"), "--pairs", "2", "--pair-crop", "32", "--threads", "1", "--device", "cpu",
        "--log-images-every", "2", *options,
    ]  # fmt: skip


def train(footage: Path, out: Path, **options) -> None:
    training.run(
        TrainOptions(
            task="distil", data=str(footage / "videos"), out=out, cache=footage / "cache", pairs=2, pair_crop=32,
            threads=1, device="cpu", steps=1, **options,
        )
    )  # fmt: skip


def run(line: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(line, capture_output=True, text=True)


def test_the_command_distils_and_names_its_teachers(footage: Path, tmp_path: Path) -> None:
    save_teacher(tmp_path / "one", wide())
    file = pooling(tmp_path / "pool.onnx", 16)
    options = (
        "--steps", "2", "--teacher", str(tmp_path / "one"), "--teacher", str(file), "--teacher-weight", "1.05",
        "--teacher-weight", "1", "--teacher-colours", "bgr",
    )  # fmt: skip
    done = run(command(footage, tmp_path / "student", *options))
    assert done.returncode == 0, done.stderr
    checkpoint = load_checkpoint(tmp_path / "student")
    assert (checkpoint.step, checkpoint.train.objective) == (2, "distil") and checkpoint.train.teacher
    assert not checkpoint.model.feature_norm, "the matches of a teacher decide the mean of the features"
    assert not checkpoint.codebook.any() and checkpoint.encoder().channels == 64
    teachers = checkpoint.provenance["teachers"]
    assert [(teacher["name"], teacher["weight"]) for teacher in teachers] == [("one", 1.05), ("pool.onnx", 1.0)]
    for teacher, path in zip(teachers, (tmp_path / "one" / FILE_NAME, file), strict=True):
        assert teacher["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert list((tmp_path / "student" / "pair_matches").iterdir())

    save_teacher(tmp_path / "one", wide(seed=8))
    with pytest.raises(InputError, match="expected the teachers of the run"):
        train(footage, tmp_path / "student", teacher=[str(tmp_path / "one"), str(file)], teacher_weight=[1.05, 1.0])
    train(footage, tmp_path / "next", teacher=["fast"], start_from=tmp_path / "student")
    names = [teacher["name"] for teacher in load_checkpoint(tmp_path / "next").provenance["teachers"]]
    assert names == ["one", "pool.onnx", "fast"], "a student of a student names all teachers"
    with pytest.raises(InputError, match="features of unit length"):
        train(footage, tmp_path / "raw", teacher=["fast"], preset="paper")
    assert not (tmp_path / "raw").exists()


def test_two_processes_distil_as_one_process(footage: Path, tmp_path: Path) -> None:
    """Weights agree to 1e-5; float64, because rounding can switch a ReLU."""
    save_teacher(tmp_path / "one", wide(8))
    options = ("--teacher", str(tmp_path / "one"), "--pairs", "4", "--steps", "2", "--precision", "float64")
    done = run(command(footage, tmp_path / "single", *options))
    assert done.returncode == 0, done.stderr
    line = command(footage, tmp_path / "double", *options)
    module = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "corrflow.train"]
    done = run([line[0], *module, *line[3:]])
    assert done.returncode == 0, done.stderr[-800:]
    single, double = load_checkpoint(tmp_path / "single"), load_checkpoint(tmp_path / "double")
    assert single.step == double.step == 2
    for states, others in ((single.model_state, double.model_state), (single.distil, double.distil)):
        for name, tensor in states.items():
            torch.testing.assert_close(others[name], tensor, atol=1e-5, rtol=1e-5)
