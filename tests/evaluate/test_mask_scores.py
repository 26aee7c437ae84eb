"""Scores of masks: scored frames and objects, cached results, refused inputs and worker processes."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from helpers.davis import add_davis_sequence, save_mask
from helpers.paths import ROOT
from PIL import Image
from typer.testing import CliRunner

from corrflow.errors import CorrflowError, InputError
from corrflow.evaluate import cli, masks
from corrflow.evaluate.data_sets import davis_data, youtube_vos_data
from corrflow.evaluate.datasets.masks import VOID, MaskSequence
from corrflow.evaluate.masks import DataSet, Job, Method, evaluate_masks, run_job
from corrflow.evaluate.methods.methods import FlowWarp, Identity, MaskPrediction
from corrflow.evaluate.metrics.masks import contour_accuracy, mean_recall_decay, region_similarity
from corrflow.evaluate.metrics.scorer import score_sequence
from corrflow.evaluate.reports.report import as_json, mask_table
from corrflow.evaluate.reports.result_store import ResultStore, computing_files, program
from corrflow.evaluate.workers import run_jobs

HEIGHT, WIDTH = 24, 40


@pytest.fixture
def root(small_davis: Path) -> Path:
    return small_davis


def square(top: int, left: int, value: int = 255) -> np.ndarray:
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[top : top + 8, left : left + 8] = value
    return mask


def data(root: Path, *names: str) -> DataSet:
    return davis_data(root, "val", names=names)


@dataclass(frozen=True)
class Shift:
    """Predictor that moves the first mask two pixels to the right per frame, and records its calls."""

    calls: list[str]
    settings: int = 0

    def describe(self) -> dict[str, Any]:
        return {"kind": "shift", "path": "anywhere", "settings": self.settings}

    def masks(self, sequence: MaskSequence, threads: int) -> Iterator[MaskPrediction]:
        self.calls.append(sequence.name)
        first = np.zeros(sequence.size(0), np.uint8)
        for item in sequence.prompts():
            first[item.mask] = item.id
        for index in range(len(sequence)):
            yield MaskPrediction(np.roll(first, 2 * index, axis=1), 0.5 if index else None)


def shift(settings: int = 0) -> Method:
    return Method("shift", Shift([], settings))


# --- scores ----------------------------------------------------------------------------------------------------


def test_means_are_over_objects_and_not_over_sequences(root: Path) -> None:
    report = evaluate_masks(data(root), [shift(), Method("identity", Identity())])
    tracked, identity = report.methods
    assert list(tracked.sequences) == list(identity.sequences) == ["two", "one"]
    moved, still = tracked.sequences["two"].objects[1], tracked.sequences["two"].objects[5]
    assert moved.region.mean == moved.contour.mean == 1.0
    # Frames 1 to 4, moved by 2, 4, 6 and 8 of 8 pixels.
    still_mean = np.mean([6 / 10, 4 / 12, 2 / 14, 0])
    assert still.region.mean == pytest.approx(still_mean, abs=1e-12)
    assert identity.sequences["two"].objects[5].region.mean == 1.0
    assert identity.sequences["one"].objects[1].region.mean == pytest.approx(still_mean, abs=1e-12)

    table = mask_table(report)
    assert list(table.columns[1].cells) == [
        f"{100 * (1 + still_mean) / 2:.1f}",
        "100.0",
        f"{100 * (2 + still_mean) / 3:.1f}",
    ]
    assert str(list(table.columns[0].cells)[-1]) == "mean of 3 objects"
    assert list(table.columns[6].cells) == ["500"] * 3
    assert list(table.columns[-1].cells) == ["", "", ""]
    assert str(table.caption) == "identity switches: 0 (shift), 0 (identity)"


def test_tables_of_many_methods_have_a_row_for_each(root: Path) -> None:
    methods = [Method(f"m{index}", Identity()) for index in range(4)]
    table = mask_table(evaluate_masks(data(root), methods))
    assert [str(cell) for cell in table.columns[0].cells] == ["m0", "m1", "m2", "m3"]


def test_void_pixels_count_for_no_object(tmp_path: Path) -> None:
    first, wrong = square(2, 3, 1), square(2, 20, 1)
    later = np.maximum(first, square(2, 20, VOID))
    add_davis_sequence(tmp_path, "only", [first, later, later, first])
    (sequence,) = data(tmp_path).sequences
    score = score_sequence(sequence, [np.maximum(first, wrong)] * 4)[1]
    assert score.frames.tolist() == [1, 2]
    assert score.region_similarity.tolist() == [1, 1]
    assert score.contour_accuracy.tolist() == [1, 1]
    with pytest.raises(CorrflowError, match="expected 4 masks"):
        score_sequence(sequence, [first] * 3)


def test_random_sequences_of_several_objects_agree_with_each_object_scored_alone(tmp_path: Path) -> None:
    """Masks of several objects, with void, missing objects and empty frames, compared to the measures mask by mask."""
    generator = np.random.default_rng(5)
    for case in range(12):
        truths, predictions = (
            generator.integers(0, 4, (2, 5, HEIGHT // 4, WIDTH // 4), np.uint8).repeat(4, 2).repeat(4, 3)
        )
        truths[3, :4] = VOID
        truths[2][truths[2] == 1] = 0
        predictions[case % 5] = 0
        truths[0, 0, :12] = [1] * 4 + [2] * 4 + [3] * 4
        add_davis_sequence(tmp_path, f"case{case}", list(truths), split=f"s{case}")
        (sequence,) = davis_data(tmp_path, f"s{case}").sequences
        for object_id, score in score_sequence(sequence, predictions).items():
            pairs = [
                (np.where(truth == VOID, 0, mask) == object_id, truth == object_id)
                for mask, truth in zip(predictions, truths, strict=True)
            ]
            assert score.region_similarity.tolist() == [region_similarity(*pair) for pair in pairs[1:-1]]
            assert score.contour_accuracy.tolist() == [contour_accuracy(*pair) for pair in pairs[1:-1]]
            assert (score.region.mean, score.region.recall, score.region.decay) == mean_recall_decay(
                score.region_similarity
            )


def test_objects_that_appear_later_are_added_on_their_prompted_frame(tmp_path: Path) -> None:
    for index in range(5):
        path = tmp_path / "JPEGImages" / "clip" / f"{index:05d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), np.full((HEIGHT, WIDTH, 3), 100, np.uint8))
    both = np.maximum(square(2, 3, 1), square(13, 20, 2))
    for index, mask in {0: square(2, 3, 1), 2: both, 4: both}.items():
        save_mask(mask, tmp_path / "Annotations" / "clip" / f"{index:05d}.png")
    vos = youtube_vos_data(tmp_path)
    for predictor in (Identity(), FlowWarp()):
        masks = [prediction.mask for prediction in predictor.masks(vos.sequences[0], 1)]
        assert [np.unique(mask).tolist() for mask in masks] == [[0, 1], [0, 1], [0, 1, 2], [0, 1, 2], [0, 1, 2]]
    (method,) = evaluate_masks(vos, [Method("identity", Identity())]).methods
    scores = method.sequences["clip"].objects
    assert {object_id: score.frames.tolist() for object_id, score in scores.items()} == {1: [2, 4], 2: [4]}
    assert [score.region.mean for score in scores.values()] == [1, 1]


# --- cached results --------------------------------------------------------------------------------------------


def computed(root: Path, results: Path, method: Method, **options: Any) -> list[str]:
    """Return the names of the sequences that a run with cached results computes."""
    evaluate_masks(data(root), [method], results=results, **options)
    assert isinstance(method.predictor, Shift)
    return method.predictor.calls


def test_unchanged_results_are_reused(root: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    first = evaluate_masks(data(root), [shift()], results=results)
    again = evaluate_masks(data(root), [shift()], results=results)
    assert not any(score.reused for score in first.methods[0].sequences.values())
    assert all(score.reused for score in again.methods[0].sequences.values())
    reports = [json.loads(json.dumps(as_json(report))) for report in (first, again)]
    for report in reports:
        for sequence in report["methods"][0]["sequences"].values():
            del sequence["reused"]
    assert reports[0] == reports[1]


def test_an_interrupted_run_continues(root: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    evaluate_masks(data(root, "two"), [shift()], results=results)
    assert computed(root, results, shift()) == ["one"]


def touch_frame(root: Path, results: Path) -> None:
    frame = root / "JPEGImages" / "480p" / "one" / "00004.jpg"
    cv2.imwrite(str(frame), np.full((HEIGHT, WIDTH, 3), 77, np.uint8))


def touch_truth(root: Path, results: Path) -> None:
    Image.fromarray(square(2, 2)).save(root / "Annotations" / "480p" / "one" / "00004.png")


def touch_mask(root: Path, results: Path) -> None:
    Image.fromarray(square(2, 2, 1)).save(results / "masks" / "shift" / "one" / "00004.png")


def remove_mask(root: Path, results: Path) -> None:
    (results / "masks" / "shift" / "one" / "00004.png").unlink()


def cut_scores(root: Path, results: Path) -> None:
    path = results / "scores" / "shift" / "one.json"
    path.write_text(path.read_text()[:-40])


def empty_scores(root: Path, results: Path) -> None:
    (results / "scores" / "shift" / "one.json").write_text("{}")


@pytest.mark.parametrize("change", [touch_frame, touch_truth, touch_mask, remove_mask, cut_scores, empty_scores])
def test_changed_results_are_computed_again(root: Path, tmp_path: Path, change: Callable[[Path, Path], None]) -> None:
    results = tmp_path / "results"
    assert computed(root, results, shift()) == ["two", "one"]
    change(root, results)
    assert computed(root, results, shift()) == ["one"]
    assert computed(root, results, shift()) == []


def test_other_settings_other_code_and_fresh_compute_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    computed(root, results, shift())
    assert computed(root, results, shift(settings=1)) == ["two", "one"]
    assert computed(root, results, shift(settings=1), fresh=True) == ["two", "one"]
    other = {**program(), "code": "0" * 64}
    monkeypatch.setattr("corrflow.evaluate.reports.result_store.program", lambda: other)
    assert computed(root, results, shift(settings=1)) == ["two", "one"]


def test_results_without_the_figures_of_today_are_computed_again(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    results = tmp_path / "results"
    monkeypatch.setattr("corrflow.evaluate.reports.result_store.RESULT_VERSION", 1)
    computed(root, results, shift())
    monkeypatch.undo()
    assert computed(root, results, shift()) == ["two", "one"]
    # A file that lacks figures is damaged, whatever its version.
    path = results / "scores" / "shift" / "one.json"
    path.write_text(path.read_text().replace('"areas"', '"sizes"'))
    assert computed(root, results, shift()) == ["one"]


def test_written_masks_have_the_same_score(root: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    report = evaluate_masks(data(root), [shift()], results=results)
    scored = CliRunner().invoke(
        cli.app, ["score", str(results / "masks" / "shift"), "--gt", str(root), "--out", str(tmp_path / "again")]
    )
    assert scored.exit_code == 0, scored.output
    written = json.loads((tmp_path / "again" / "report.json").read_text())
    assert written["methods"][0]["mean_over_objects"] == as_json(report)["methods"][0]["mean_over_objects"]


def test_failed_writes_leave_the_old_result(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = tmp_path / "results"
    first = evaluate_masks(data(root, "one"), [shift()], results=results).methods[0].sequences["one"]
    path = results / "scores" / "shift" / "one.json"
    old = path.read_text()
    monkeypatch.setattr("os.replace", lambda source, target: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(CorrflowError, match="expected to write"):
        ResultStore(results).save("shift", "one", {}, replace(first, frames=3))
    assert path.read_text() == old
    assert [item.name for item in path.parent.iterdir()] == ["one.json"]


# --- refused inputs --------------------------------------------------------------------------------------------


PREDICTED = Path("masks/shift/one/00002.png")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        pytest.param(lambda path: path.unlink(), "missing 00002.png", id="missing"),
        pytest.param(lambda path: path.write_bytes(path.read_bytes()[:-30]), "cannot be decoded: {path}", id="cut off"),
        pytest.param(
            lambda path: Image.fromarray(square(2, 2, 1)[:-1]).save(path), "size 40x24, got 40x23 in {path}", id="size"
        ),
        pytest.param(
            lambda path: Image.fromarray(square(2, 2, 3)).save(path), r"ids [1], got [3] in {path}", id="unknown id"
        ),
        pytest.param(
            lambda path: Image.fromarray(np.maximum(square(2, 2, 1), square(13, 2, 255))).save(path),
            "got [255] in {path}",
            id="id and 255",
        ),
        pytest.param(lambda path: path.parent.rename(path.parent.with_name("x")), "a folder of masks", id="sequence"),
    ],
)
def test_invalid_predictions_are_refused_by_name(
    root: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    results = tmp_path / "results"
    evaluate_masks(data(root), [shift()], results=results)
    damage(results / PREDICTED)
    scored = CliRunner().invoke(cli.app, ["score", str(results / "masks" / "shift"), "--gt", str(root)])
    assert scored.exit_code == 2
    assert message.format(path=results / PREDICTED) in scored.stderr
    assert len(scored.stderr.strip().splitlines()) == 1 or "frames" in scored.stderr.splitlines()[0]


def test_predictions_of_0_and_255_and_without_the_first_frame_are_scored(root: Path, tmp_path: Path) -> None:
    for index in range(1, 6):
        save_mask(square(1, 2 + 2 * index), tmp_path / "mine" / "one" / f"{index:05d}.png")
    scored = CliRunner().invoke(
        cli.app, ["score", str(tmp_path / "mine"), "--gt", str(root), "--sequence", "one"], catch_exceptions=False
    )
    assert scored.exit_code == 0, scored.output
    assert "100.0" in scored.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--sequence", "ghost"], "(two, one), got ghost"),
        (["--short-side", "3"], "a short side of 16 to 8192"),
        (["--protocol", "stc"], "a protocol among"),
        (["--baseline", "magic"], "baselines among identity, lab, flow"),
        (["--model", "no/such"], "or a path, got 'no/such'"),
        (["--model", "random-init:giant"], "cannot make random-init:giant: expected a preset among"),
        (["--encoder", "no.onnx"], "an encoder as ONNX at no.onnx"),
        (["--encoder", "no.onnx", "--encoder-mean", "a"], "three numbers"),
        (["--encoder", "no.onnx", "--encoder-std", "1,0,1"], "positive for std"),
        (["--encoder", "no.onnx", "--encoder-layout", "chw"], "encoder layout among"),
        (["--attributes", "no.json", "--baseline", "identity"], "expected attributes as JSON"),
        (["--out", "/proc/nowhere"], "a folder to write to"),
        (["--baseline", "flow", "--baseline", "flow", "--model", "quarter", "--model", "quarter"], "twice"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_wrong_options_are_one_line_before_anything_is_tracked(root: Path, options: list[str], message: str) -> None:
    done = CliRunner().invoke(cli.app, ["davis", str(root), *options])
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("error: ") and len(done.stderr.splitlines()) == 1
    assert message in done.stderr


# --- processes -------------------------------------------------------------------------------------------------


def test_parallel_scores_match_one_process(root: Path) -> None:
    one, two = (
        as_json(evaluate_masks(data(root), [Method("identity", Identity())], workers=workers)) for workers in (1, 2)
    )
    assert one == two


def test_errors_of_worker_processes_keep_their_type_and_text(root: Path) -> None:
    (sequence,) = data(root, "one").sequences
    sequence.annotation_path(1).write_text("no picture")
    job = Job(Method("identity", Identity()), sequence, None)
    with pytest.raises(InputError, match="cannot be decoded"):
        list(run_jobs(run_job, [job], workers=2, frames=6, show_progress=False))


# --- benchmark -------------------------------------------------------------------------------------------------


def test_benchmark_compares_equal_values(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from corrflow.evaluate.benchmark import compare

    assert compare(root, "val", ["one"]) > 0
    printed = capsys.readouterr().out
    assert "4 frames of 1 sequences; the same values to 1e-12" in printed
    assert [line.split("  ")[0].strip() for line in printed.splitlines()[:3]] == [
        "corrflow",
        "SciPy, footprint",
        "SciPy, distance",
    ]


def test_cached_results_depend_on_all_code_that_computes() -> None:
    """Modules that the tracker imports are in the hash as well, by whichever folder they are in."""
    hashed = {path.resolve() for path in computing_files()}
    assert Path(masks.__file__).resolve() in hashed
    for path in hashed:
        # Reports of the evaluation and formats of labels change no score.
        if path.suffix != ".py" or {"evaluate", "formats"} & set(path.parts):
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith(
                ("corrflow.runtime.", "corrflow.plugins.")
            ):
                imported = Path(ROOT, *str(node.module).split(".")[1:])
                module = imported / "__init__.py" if imported.is_dir() else imported.with_suffix(".py")
                assert module.resolve() in hashed, f"{path} imports {node.module}"
