"""Choice of tracking settings by measured J&F and CPU time: one setting at a time, or every combination."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from rich.console import Console
from rich.table import Table

from corrflow.atomic_files import write_file
from corrflow.errors import CorrflowError, InputError
from corrflow.evaluate.data_sets import open_sets
from corrflow.evaluate.measurements import Measurements, SetScores
from corrflow.evaluate.method_selection import model_method
from corrflow.evaluate.methods.disc_search import DiscSearch
from corrflow.evaluate.methods.methods import TrackerMethod
from corrflow.evaluate.options import SearchOptions, SearchSpaceOptions
from corrflow.evaluate.reports.files import prepare_folder
from corrflow.evaluate.reports.report import cpu_seconds_per_frame, mean_scores, print_table, worst_third
from corrflow.evaluate.reports.result_store import program
from corrflow.runtime.settings import last_frames
from corrflow.runtime.tracking.occlusion import OcclusionSettings

N = TypeVar("N", int, float)

MAX_ROUNDS = 3
"""Rounds over all settings; most searches converge in the second round."""

NAMES = ("short_side", "radius", "memory_frames", "top_k", "temperature")
"""Settings with an option of their own."""

OBJECTIVES = ("mean", "worst-third", "both")

Space = Mapping[str, tuple[Any, ...]]
"""Values to try, by the setting's name; see `with_value` for the names."""


@dataclass(frozen=True)
class Trial:
    """Measured method. Means over objects, 0..1, and then over data sets; CPU seconds per frame.

    scores: J, F and J&F of all sequences, and the J&F of the worst third as "worst third"
    """

    method: TrackerMethod
    scores: dict[str, float]
    cpu_seconds: float

    def value(self, objective: str = "mean") -> float:
        """Return what a search maximises: one of `OBJECTIVES`; "both" is the mean of the other two."""
        mean, worst = self.scores["J&F"], self.scores["worst third"]
        return {"mean": mean, "worst-third": worst, "both": (mean + worst) / 2}[objective]


def trial_of(method: TrackerMethod, scores: SetScores) -> Trial:
    """Summarise a method's scores; every data set counts the same."""
    rows = []
    for sequences in scores.values():
        rows.append(
            {**mean_scores(sequences.values()), "worst third": mean_scores(worst_third(sequences).values())["J&F"]}
        )
    everything = [score for sequences in scores.values() for score in sequences.values()]
    means = {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}
    return Trial(method, means, cpu_seconds_per_frame(everything) or 0.0)


def with_value(method: TrackerMethod, name: str, value: Any) -> TrackerMethod:
    """Return the method with one setting changed.

    name: memory_frames, redetect, a field of TrackingSettings, or occlusion.FIELD for a field of OcclusionSettings

    Raises InputError for an unknown name, and for a value out of range or of another type.
    """
    settings = method.settings
    if name == "redetect" and isinstance(value, bool):
        return replace(method, redetect=value)
    if name == "memory_frames" and isinstance(value, int):
        return replace(method, settings=replace(settings, recent_offsets=last_frames(value)))
    owner, field = (method.occlusion, name[10:]) if name.startswith("occlusion.") else (settings, name)
    if field not in {item.name for item in fields(owner)}:
        tracking = ", ".join(item.name for item in fields(settings))
        thresholds = ", ".join(item.name for item in fields(OcclusionSettings))
        raise InputError(
            f"expected a setting among memory_frames, redetect, {tracking}, and occlusion. with {thresholds},"
            f" got {name!r}; choose one of those"
        )
    present = getattr(owner, field)
    if isinstance(present, tuple):
        value = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    elif isinstance(present, float) and type(value) is int:
        value = float(value)
    items = value if isinstance(value, tuple) else (value,)
    kind = int if isinstance(present, tuple) else type(present)
    if not all(type(item) is kind for item in items):
        raise InputError(f"expected values such as {present!r} for {name}, got {value!r}; correct the value")
    if owner is settings:
        return replace(method, settings=replace(settings, **{field: value}))
    return replace(method, occlusion=replace(method.occlusion, **{field: value}))


class Search:
    """Search on the sequences of some measurements, or on a part of them.

    included: names of the sequences to choose by, by the data set's label; None for all
    """

    def __init__(
        self,
        measurements: Measurements,
        max_seconds: float = 0.0,
        objective: str = "mean",
        included: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self._measurements, self._max_seconds, self._objective = measurements, max_seconds, objective
        self._included = included
        self.trials: dict[TrackerMethod, Trial] = {}

    def measure(self, candidates: Iterable[TrackerMethod], label: str = "frames") -> list[Trial]:
        """Measure methods, and return a trial for each; the label is for the progress bar."""
        requested = list(dict.fromkeys(candidates))
        for method, scores in zip(requested, self._measurements.measure(requested, label), strict=True):
            if self._included is not None:
                scores = {key: {name: scores[key][name] for name in names} for key, names in self._included.items()}
            self.trials[method] = trial_of(method, scores)
        return [self.trials[method] for method in requested]

    def best(self, trials: Sequence[Trial]) -> Trial:
        return best_trial(trials, self._max_seconds, self._objective)

    def coordinate_search(self, start: TrackerMethod, space: Space) -> Trial:
        """Set one setting after another to its best value, from `start`, until a round changes nothing."""
        best = self.measure([start], "initial settings")[0]
        for _ in range(MAX_ROUNDS):
            previous = best
            for name, values in space.items():
                candidates = [with_value(best.method, name, value) for value in values]
                best = self.best(self.measure([best.method, *candidates], name))
            if best.method == previous.method:
                break
        return best

    def grid_search(self, start: TrackerMethod, space: Space) -> Trial:
        """Try every combination of the values, and `start`."""
        candidates = [start]
        for values in itertools.product(*([(name, value) for value in values] for name, values in space.items())):
            method = start
            for name, value in values:
                method = with_value(method, name, value)
            candidates.append(method)
        return self.best(self.measure(candidates))


def best_trial(trials: Sequence[Trial], max_seconds: float = 0.0, objective: str = "mean") -> Trial:
    """Return the highest value among trials of at most `max_seconds` per frame (0: any); of equal trials the fastest.

    Return the fastest of all trials where none is fast enough.
    """
    fast = [trial for trial in trials if not max_seconds or trial.cpu_seconds <= max_seconds]
    if not fast:
        return min(trials, key=lambda trial: trial.cpu_seconds)
    return max(fast, key=lambda trial: (trial.value(objective), -trial.cpu_seconds))


def pareto(trials: Iterable[Trial]) -> list[Trial]:
    """Return the Pareto front of J&F and CPU time, fastest first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda trial: (trial.cpu_seconds, -trial.value())):
        if not front or trial.value() > front[-1].value():
            front.append(trial)
    return front


def search_table(trials: Iterable[Trial], chosen: Trial, start: TrackerMethod, title: str) -> Table:
    """Build a table with one row per trial, best first; the chosen trial and the Pareto front are marked."""
    table = Table(title=title)
    columns = ("short_side", "references", "radius", "top_k", "temperature", "further", "J", "F", "J&F", "worst third")
    for name in (*columns, "CPU ms", ""):
        table.add_column(name, justify="right", no_wrap=True)
    trials = list(trials)
    front = pareto(trials)
    for trial in sorted(trials, key=lambda trial: -trial.value()):
        settings = trial.method.settings
        marks = [mark for mark, marked in (("chosen", trial is chosen), ("pareto", trial in front)) if marked]
        further = changes(start, trial.method, but=("short_side", "recent_offsets", "top_k", "temperature", "radius"))
        table.add_row(
            str(settings.short_side or "own"),
            f"{len(settings.permanent_frames)}+{len(settings.recent_offsets)}",
            ",".join(map(str, settings.radius)),
            str(settings.top_k or "all"),
            f"{settings.temperature:g}",
            further,
            *(f"{100 * trial.scores[name]:.1f}" for name in ("J", "F", "J&F", "worst third")),
            f"{1000 * trial.cpu_seconds:.0f}",
            ", ".join(marks),
        )
    return table


def changes(start: TrackerMethod, method: TrackerMethod, but: Sequence[str] = ()) -> str:
    """Return the settings of `method` that differ from `start`, such as "radius=[8] redetect=false"."""
    texts = []
    for prefix, old, new in (
        ("", asdict(start.settings), asdict(method.settings)),
        ("", {"redetect": start.redetect}, {"redetect": method.redetect}),
        ("occlusion.", asdict(start.occlusion), asdict(method.occlusion)),
    ):
        texts += [
            f"{prefix}{name}={json.dumps(new[name], separators=(',', ':'))}"
            for name in new
            if name not in but and new[name] != old[name]
        ]
    return " ".join(texts)


def search_space(options: SearchSpaceOptions) -> dict[str, tuple[Any, ...]]:
    """Parse the values to try. Raises InputError for text that is no number or no JSON value."""
    space: dict[str, tuple[Any, ...]] = {}

    def values(name: str, kind: Callable[[str], N], expected: str) -> None:
        text = getattr(options, name)
        try:
            space[name] = tuple(kind(part) for part in text.split(",") if part.strip())
        except ValueError as error:
            option = name.replace("_", "-")
            raise InputError(f"expected --{option} as {expected} with commas, got {text!r}") from error

    for name in NAMES[:4]:
        values(name, int, "whole numbers")
    values("temperature", float, "numbers")
    for text in options.vary or ():
        name, equals, listed = text.partition("=")
        try:
            parsed = json.loads(f"[{listed}]")
        except ValueError:
            parsed = []
        if not equals or not parsed:
            raise InputError(f"expected --vary NAME=VALUE,VALUE such as move_windows=true,false, got {text!r}")
        space[name.strip()] = tuple(tuple(value) if isinstance(value, list) else value for value in parsed)
    return {name: listed for name, listed in space.items() if listed}


def check_search(options: SearchSpaceOptions, starts: Iterable[TrackerMethod]) -> dict[str, tuple[Any, ...]]:
    """Return the values to try. Raises InputError for values out of range, before tracking starts."""
    if options.objective not in OBJECTIVES:
        raise InputError(f"expected --objective {', '.join(OBJECTIVES)}, got {options.objective!r}; choose one")
    space = search_space(options)
    for start in starts:
        for name, values in space.items():
            for value in values:
                with_value(start, name, value)
    return space


def run_search(options: SearchOptions) -> Trial:
    """Run corrflow-eval search: print the trials, write settings.json, search.json and the model of --write."""
    start, artifact = model_method(options.model, options.protocol)
    space = check_search(options, [start])
    sets = open_sets(options.root, options)
    out, write, max_seconds = options.out, options.write, options.max_seconds
    if write is not None and out is None:
        raise InputError("expected --out with --write, for the settings of the new model")
    if write is not None and isinstance(start.encoder, DiscSearch):
        raise InputError(
            f"expected --write with a protocol that models can track with, got {options.protocol}, which searches"
            " discs; leave --write out"
        )
    if write is not None and write.exists():
        raise InputError(f"expected a new folder for the model, got {write}, which exists; name another")
    if out is not None:
        prepare_folder(out)
    measurements = Measurements(sets, options.workers, out, show_progress=True)
    search = Search(measurements, max_seconds, options.objective)
    chosen = (search.grid_search if options.grid else search.coordinate_search)(start, space)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    title = ", ".join(data.label or f"{data.name} {data.split}" for data in sets)
    print_table(search_table(search.trials.values(), chosen, start, f"{title}, {artifact.name}"))
    if max_seconds and chosen.cpu_seconds > max_seconds:
        console.print(f"note: no trial takes at most {max_seconds:g} CPU seconds per frame; the fastest was chosen")
    if measurements.reused:
        console.print(f"{measurements.reused} results are from an earlier search with the same code, settings and data")
    if (chosen.method.redetect, chosen.method.occlusion) != (start.redetect, start.occlusion):
        console.print("note: redetect and occlusion. are no settings of a model, so settings.json lacks them")
    if out is not None:
        path = out / "settings.json"
        write_file(path, json.dumps(asdict(chosen.method.settings), indent=2) + "\n")
        write_file(out / "search.json", json.dumps(_as_json(search, chosen, measurements), indent=1) + "\n")
        console.print(f"wrote {path} and {out / 'search.json'}", markup=False)
        if write is not None:
            _write_model(artifact, write, path)
            console.print(f"wrote {write}; next: corrflow-track VIDEO --model {write}", markup=False)
    return chosen


def _write_model(source: Path, target: Path, settings: Path) -> None:
    # The export command builds graphs with packages that this package must not import.
    command = [sys.executable, "-m", "corrflow.export.cli", "settings", str(source), str(target), str(settings)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        message = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise CorrflowError(f"cannot write {target}: {message.removeprefix('error: ')}")


def trial_as_json(trial: Trial) -> dict[str, Any]:
    """Convert a trial to JSON values."""
    method = trial.method
    further: dict[str, Any] = {"redetect": method.redetect}
    if method.redetect and method.occlusion != OcclusionSettings():
        further["occlusion"] = asdict(method.occlusion)
    return {"settings": asdict(method.settings), **further, **trial.scores, "cpu_seconds_per_frame": trial.cpu_seconds}


def _as_json(search: Search, chosen: Trial, measurements: Measurements) -> dict[str, Any]:
    return {
        "sets": [
            {
                "label": data.label,
                "name": data.name,
                "root": data.root,
                "split": data.split,
                "sequences": [sequence.name for sequence in data.sequences],
            }
            for data in measurements.sets
        ],
        "program": program(),
        "chosen": trial_as_json(chosen),
        "pareto": [trial_as_json(trial) for trial in pareto(search.trials.values())],
        "tried": [trial_as_json(trial) for trial in search.trials.values()],
    }
