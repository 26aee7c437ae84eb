"""Tables and JSON of a cross-validation: each data set, its worst third, each kind, each sequence, each fold."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from corrflow.evaluate.masks import DataSet
from corrflow.evaluate.measurements import SetScores
from corrflow.evaluate.methods.methods import TrackerMethod
from corrflow.evaluate.reports.bootstrap import (
    LEVEL,
    Comparison,
    PairedScores,
    compare,
    draw_recordings,
    mean_over_objects,
    worst_third_over_objects,
)
from corrflow.evaluate.reports.report import means_as_json, sets_table, summary
from corrflow.evaluate.reports.result_store import program
from corrflow.evaluate.search import Trial, changes, trial_as_json

CROSS_VALIDATION_VERSION = 2

ALL = "all data sets"


@dataclass(frozen=True)
class Fold:
    """One part of the recordings, and the trial that was chosen on all other parts.

    start: the start of the search that found the chosen method
    """

    recordings: tuple[str, ...]
    chosen: Trial
    start: TrackerMethod


@dataclass(frozen=True)
class CrossValidation:
    """Scores of the chosen methods on the sequences that they were not chosen on, and those of a baseline.

    recordings: name and group of each recording; recordings of a group are in the same data sets
    fold_of:    [R] fold of each recording
    before:     scores of the baseline; after: those of the chosen methods
    paired:     scores by the data set's label, sequences in the order of the data set
    """

    sets: tuple[DataSet, ...]
    recordings: tuple[tuple[str, tuple[str, ...]], ...]
    fold_of: tuple[int, ...]
    folds: tuple[Fold, ...]
    baseline: Trial
    validated: dict[str, float]
    before: SetScores
    after: SetScores
    paired: dict[str, PairedScores]
    tried: int

    def attributes(self, label: str) -> list[tuple[str, ...]]:
        """Return the attributes of each sequence of a data set."""
        (data,) = (data for data in self.sets if data.label == label)
        return [data.attributes.get(sequence.recording, ()) for sequence in data.sequences]


@dataclass(frozen=True)
class _Row:
    """Comparison of a part of the sequences. kind: "mean", "worst third" or an attribute."""

    label: str
    kind: str
    comparison: Comparison


def _title(data: DataSet) -> str:
    return data.label or f"{data.name} {data.split}"


def _rows(result: CrossValidation, resamples: int, seed: int) -> Iterator[_Row]:
    """Compare every data set, its worst third and its kinds, and then all data sets together."""
    draws = draw_recordings([group for _, group in result.recordings], resamples, seed)
    everything = [*((_title(data), [data.label]) for data in result.sets)]
    if len(result.sets) > 1:
        everything.append((ALL, [data.label for data in result.sets]))
    kinds = sorted({kind for data in result.sets for kinds in result.attributes(data.label) for kind in kinds})
    for title, labels in everything:
        sets = [result.paired[label] for label in labels]
        yield _Row(title, "mean", compare(sets, draws, mean_over_objects))
        yield _Row(title, "worst third", compare(sets, draws, worst_third_over_objects))
        for kind in kinds:
            parts = [_of_kind(result, label, kind) for label in labels]
            if any(len(part.objects) for part in parts):
                yield _Row(title, kind, compare(parts, draws, mean_over_objects))


def _of_kind(result: CrossValidation, label: str, kind: str) -> PairedScores:
    return result.paired[label].restricted([kind in kinds for kinds in result.attributes(label)])


def cross_validation_tables(result: CrossValidation, resamples: int, seed: int) -> list[Table]:
    """Build the tables: data sets, area, losses and price, kinds, sequences and folds."""
    rows = list(_rows(result, resamples, seed))
    overall = _comparison_table(
        f"cross-validated J&F, percent: {len(result.folds)} folds, {result.tried} methods tried", "of"
    )
    kinds = _comparison_table("cross-validated J&F by kind, percent", "kind")
    for index, row in enumerate(rows):
        table = overall if row.kind in ("mean", "worst third") else kinds
        if index and rows[index - 1].label != row.label:
            for each in (overall, kinds):
                each.add_section()
        _add_comparison(table, row)
    means = sets_table(
        (_title(data), name, scores[data.label])
        for data in result.sets
        for name, scores in (("before", result.before), ("after", result.after))
    )
    return [overall, means, *([kinds] if kinds.row_count else []), _sequence_table(result), _fold_table(result)]


def _comparison_table(title: str, kind: str) -> Table:
    table = Table(title=title)
    for name in ("data set", kind):
        table.add_column(name, no_wrap=True)
    for name in ("sequences", "before", "after", "difference", f"{100 * LEVEL:.0f} % interval", ""):
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _add_comparison(table: Table, row: _Row) -> None:
    it = row.comparison
    table.add_row(
        Text(row.label),
        Text(row.kind),
        str(it.sequences),
        f"{100 * it.before:.1f}",
        f"{100 * it.after:.1f}",
        f"{100 * it.difference:+.1f}",
        f"{100 * it.low:+.1f} to {100 * it.high:+.1f}",
        it.verdict,
    )


def _sequence_table(result: CrossValidation) -> Table:
    """Build the table of each recording's difference in each data set, largest loss first."""
    table = Table(title="J&F of each sequence, percent: before, after, difference")
    table.add_column("sequence", no_wrap=True)
    table.add_column("fold", justify="right")
    for data in result.sets:
        for index, name in enumerate(("before", "after", "difference")):
            table.add_column(Text(f"{'' if index else _title(data)}\n{name}"), justify="right", no_wrap=True)
    cells: list[tuple[float, list[str]]] = []
    for recording, (name, _) in enumerate(result.recordings):
        texts, differences = [name, str(result.fold_of[recording] + 1)], []
        for data in result.sets:
            paired = result.paired[data.label]
            at = np.flatnonzero(paired.recordings == recording)
            if not len(at):
                texts += ["", "", ""]
                continue
            before, after = (values[at[0]] / paired.objects[at[0]] for values in (paired.before, paired.after))
            texts += [f"{100 * before:.1f}", f"{100 * after:.1f}", f"{100 * (after - before):+.1f}"]
            differences.append(after - before)
        cells.append((float(np.mean(differences)), texts))
    for _, texts in sorted(cells, key=lambda row: row[0]):
        table.add_row(*map(Text, texts))
    return table


def _fold_table(result: CrossValidation) -> Table:
    table = Table(title="settings chosen for each fold on the other folds")
    for name in ("fold", "sequences", "model", "J&F there", "changes of the model's settings"):
        table.add_column(name, no_wrap=True)
    for index, fold in enumerate(result.folds):
        table.add_row(
            str(index + 1),
            str(len(fold.recordings)),
            Text(_model(fold.chosen.method)),
            f"{100 * fold.chosen.value():.1f}",
            Text(changes(fold.start, fold.chosen.method) or "none"),
        )
    return table


def _model(method: TrackerMethod) -> str:
    return str(method.encoder.describe()["name"])


def cross_validation_as_json(result: CrossValidation, resamples: int, seed: int) -> dict[str, Any]:
    """Convert a cross-validation to JSON values; scores are 0..1."""
    values: dict[str, Any] = {
        "version": CROSS_VALIDATION_VERSION,
        "program": program(),
        "seed": seed,
        "resamples": resamples,
        "methods_tried": result.tried,
        "baseline": {"model": _model(result.baseline.method), **trial_as_json(result.baseline)},
        "folds": [
            {
                "recordings": list(fold.recordings),
                "model": _model(fold.chosen.method),
                "changes": changes(fold.start, fold.chosen.method),
                "chosen": trial_as_json(fold.chosen),
            }
            for fold in result.folds
        ],
        "comparisons": [
            {
                "set": row.label,
                "of": row.kind,
                **asdict(row.comparison),
                "difference": row.comparison.difference,
                "verdict": row.comparison.verdict,
            }
            for row in _rows(result, resamples, seed)
        ],
        "sets": {
            _title(data): {
                "before": means_as_json(result.before[data.label]),
                "after": means_as_json(result.after[data.label]),
            }
            for data in result.sets
        },
        "sequences": {},
    }
    for data in result.sets:
        paired = result.paired[data.label]
        values["sequences"][_title(data)] = {
            sequence.name: {
                "fold": result.fold_of[recording],
                "objects": int(objects),
                "before": float(before / objects),
                "after": float(after / objects),
                "difference": float((after - before) / objects),
                "figures_before": summary([result.before[data.label][sequence.name]]),
                "figures_after": summary([result.after[data.label][sequence.name]]),
                "attributes": list(data.attributes.get(sequence.recording, ())),
            }
            for sequence, recording, objects, before, after in zip(
                data.sequences, paired.recordings, paired.objects, paired.before, paired.after, strict=True
            )
        }
    return values
