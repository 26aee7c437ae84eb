"""Cross-validation of tracking settings: chosen on all folds but one, scored on that one.

A fold has whole recordings: all resampled sequences of one folder of frames, in every data set, are in one fold.
Every candidate is measured on all sequences once, and the choice for a fold uses the scores of the other folds alone.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.evaluate.data_sets import open_sets
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.measurements import Measurements
from corrflow.evaluate.method_selection import model_method
from corrflow.evaluate.methods.methods import TrackerMethod
from corrflow.evaluate.options import CrossValidateOptions
from corrflow.evaluate.reports.bootstrap import PairedScores
from corrflow.evaluate.reports.cross_validation import (
    CrossValidation,
    Fold,
    cross_validation_as_json,
    cross_validation_tables,
)
from corrflow.evaluate.reports.files import prepare_folder
from corrflow.evaluate.reports.report import SequenceScore, mean_scores, print_table
from corrflow.evaluate.search import Search, Space, check_search, trial_of


def assign_folds(recordings: Sequence[tuple[str, tuple[str, ...]]], folds: int, seed: int) -> tuple[int, ...]:
    """Return the fold of each recording: [R], the same for the same names, groups and seed.

    Recordings of each group are dealt to the folds in turn. Raises InputError for fewer recordings than folds.
    """
    if folds > len(recordings):
        raise InputError(f"expected at least {folds} sequences for {folds} folds, got {len(recordings)}")

    def rank(index: int) -> tuple[tuple[str, ...], str]:
        name, group = recordings[index]
        return group, hashlib.sha256(f"{seed} {name}".encode()).hexdigest()

    fold_of = [0] * len(recordings)
    for place, index in enumerate(sorted(range(len(recordings)), key=rank)):
        fold_of[index] = place % folds
    return tuple(fold_of)


def cross_validate(
    measurements: Measurements,
    starts: Sequence[TrackerMethod],
    space: Space,
    baseline: TrackerMethod,
    *,
    folds: int = 5,
    seed: int = 0,
    grid: bool = False,
    max_seconds: float = 0.0,
    objective: str = "mean",
) -> CrossValidation:
    """Choose a method for each fold on the other folds, and collect the scores of the fold.

    starts: methods from which to search; the best result of all searches is chosen
    """
    sets = measurements.sets
    members: dict[Path, list[tuple[str, MaskSequence]]] = {}
    for data in sets:
        for sequence in data.sequences:
            members.setdefault(_recording(sequence), []).append((data.label, sequence))
    recordings = tuple(
        (owned[0][1].recording, tuple(dict.fromkeys(label for label, _ in owned))) for owned in members.values()
    )
    index_of = {folder: index for index, folder in enumerate(members)}
    fold_of = assign_folds(recordings, folds, seed)

    (before,) = measurements.measure([baseline], "baseline")
    after: dict[str, dict[str, SequenceScore]] = {data.label: {} for data in sets}
    chosen_folds = []
    for fold in range(folds):
        included: dict[str, list[str]] = {data.label: [] for data in sets}
        held_out: list[tuple[str, str]] = []
        for folder, owned in members.items():
            for label, sequence in owned:
                if fold_of[index_of[folder]] == fold:
                    held_out.append((label, sequence.name))
                else:
                    included[label].append(sequence.name)
        search = Search(
            measurements, max_seconds, objective, {label: names for label, names in included.items() if names}
        )
        found = [(search.grid_search if grid else search.coordinate_search)(start, space) for start in starts]
        chosen = search.best(found)
        (scores,) = measurements.measure([chosen.method])
        for label, name in held_out:
            after[label][name] = scores[label][name]
        names = tuple(name for (name, _), part in zip(recordings, fold_of, strict=True) if part == fold)
        chosen_folds.append(Fold(names, chosen, starts[found.index(chosen)]))

    ordered = {
        data.label: {sequence.name: after[data.label][sequence.name] for sequence in data.sequences} for data in sets
    }
    paired = {
        data.label: _paired(
            [index_of[_recording(sequence)] for sequence in data.sequences], before[data.label], ordered[data.label]
        )
        for data in sets
    }
    return CrossValidation(
        sets,
        recordings,
        fold_of,
        tuple(chosen_folds),
        trial_of(baseline, before),
        trial_of(baseline, ordered).scores,
        before,
        ordered,
        paired,
        len(measurements.methods),
    )


def _recording(sequence: MaskSequence) -> Path:
    return sequence.image_paths[0].parent.resolve()


def _paired(
    recordings: Sequence[int], before: Mapping[str, SequenceScore], after: Mapping[str, SequenceScore]
) -> PairedScores:
    objects = np.array([len(score.objects) for score in before.values()])

    def sums(scores: Mapping[str, SequenceScore]) -> np.ndarray:
        return objects * np.array([mean_scores([scores[name]])["J&F"] for name in before])

    return PairedScores(np.array(recordings), objects, sums(before), sums(after))


def run_cross_validation(options: CrossValidateOptions) -> CrossValidation:
    """Run corrflow-eval cross-validate: print the tables, write cross_validation.json and cross_validation.txt."""
    starts = [model_method(name, options.protocol)[0] for name in options.model or ("quarter",)]
    baseline = starts[0] if options.against is None else model_method(options.against, "default")[0]
    space = check_search(options, starts)
    sets = open_sets(options.root, options, options.attributes)
    if options.out is not None:
        prepare_folder(options.out)
    measurements = Measurements(sets, options.workers, options.out, show_progress=True)
    result = cross_validate(
        measurements,
        starts,
        space,
        baseline,
        folds=options.folds,
        seed=options.seed,
        grid=options.grid,
        max_seconds=options.max_seconds,
        objective=options.objective,
    )
    tables = cross_validation_tables(result, options.resamples, options.seed)
    for table in tables:
        print_table(table)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if measurements.reused:
        console.print(f"{measurements.reused} results are from an earlier run with the same code, settings and data")
    if options.out is not None:
        text = Console(file=io.StringIO(), width=10_000)
        for table in tables:
            text.print(table)
        page, data = (options.out / f"cross_validation.{kind}" for kind in ("txt", "json"))
        lines = text.file.getvalue().splitlines()  # pyright: ignore[reportAttributeAccessIssue]
        write_file(page, "\n".join(line.rstrip() for line in lines) + "\n")
        values = cross_validation_as_json(result, options.resamples, options.seed)
        write_file(data, json.dumps(values, indent=1) + "\n")
        console.print(f"wrote {page} and {data}", markup=False)
    return result
