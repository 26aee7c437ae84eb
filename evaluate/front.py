"""Front of accuracy and price: scores of models on data sets, and their CPU time, measured in one run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from statistics import median

import cv2
from rich.console import Console

from corrflow.atomic_files import write_file
from corrflow.evaluate.data_sets import open_sets
from corrflow.evaluate.datasets.masks import MaskSequence
from corrflow.evaluate.masks import THREADS
from corrflow.evaluate.measurements import Measurements
from corrflow.evaluate.method_selection import select_methods
from corrflow.evaluate.methods.methods import ArtifactEncoder, TrackerMethod
from corrflow.evaluate.options import FrontOptions, MethodOptions
from corrflow.evaluate.reports.files import prepare_folder
from corrflow.evaluate.reports.front import PricedModel, front_as_json, front_svg, front_table
from corrflow.evaluate.reports.report import print_notes, print_table
from corrflow.evaluate.search import trial_of
from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import DEFAULT_MODEL, bundled_models
from corrflow.runtime.backends.registry import open_backend

FILLING_FRAMES = 12
"""Frames before the measured ones: the memory of reference frames fills, and the price of a frame rises with it."""

TIMED_FRAMES = 24


def there_and_back(length: int) -> Iterator[int]:
    """Yield the indices of `length` >= 2 frames forward and backward without end, so that no motion is large."""
    while True:
        yield from range(length - 1)
        yield from range(length - 1, 0, -1)


def measure_prices(
    methods: Sequence[TrackerMethod], sequence: MaskSequence, filling: int = FILLING_FRAMES, timed: int = TIMED_FRAMES
) -> list[list[float]]:
    """Measure CPU seconds of each timed frame for each method, on the CPU with one thread and one object.

    Every frame is tracked by all methods before the next frame, and another method is the first on each frame. So a
    machine that is busy for a while slows all methods, and ratios of prices hold.
    """
    prompt = sequence.prompts()[:1]
    seconds: list[list[float]] = [[] for _ in methods]
    threads = cv2.getNumThreads()
    cv2.setNumThreads(THREADS)
    try:
        with ExitStack() as stack:
            trackers = []
            for method in methods:
                assert isinstance(method.encoder, ArtifactEncoder)
                backend = open_backend("onnxruntime", load_artifact(method.encoder.path), THREADS)
                trackers.append(stack.enter_context(method.tracker(backend)))
            for number, index in zip(range(filling + timed + 1), there_and_back(len(sequence)), strict=False):
                image = sequence.image(index)
                for turn in range(len(trackers)):
                    which = (number + turn) % len(trackers)
                    if number == 0:
                        trackers[which].start(image, prompt)
                        continue
                    begin = time.process_time()
                    trackers[which].step(image)
                    if number > filling:
                        seconds[which].append(time.process_time() - begin)
    finally:
        cv2.setNumThreads(threads)
    return seconds


def run_front(options: FrontOptions) -> list[PricedModel]:
    """Run corrflow-eval front: print the table, and write front.svg and front.json."""
    sets = open_sets(options.root, options)
    prepare_folder(options.out)
    names = dict.fromkeys((DEFAULT_MODEL, *bundled_models(), *(options.model or ())))
    chosen = select_methods(MethodOptions(model=list(names)), options.out / "models")
    methods = [method.predictor for method in chosen if isinstance(method.predictor, TrackerMethod)]
    measurements = Measurements(sets, options.workers, options.out, show_progress=True)
    trials = [trial_of(method, scores) for method, scores in zip(methods, measurements.measure(methods), strict=True)]

    console = Console(stderr=True, soft_wrap=True, highlight=False)
    if measurements.reused:
        console.print(f"{measurements.reused} results are from an earlier run with the same code, settings and data")
    sequence = sets[0].sequences[0]
    console.print(f"measuring CPU time on {sequence.name}", markup=False)
    prices = measure_prices(methods, sequence)
    models = [
        PricedModel(
            method.label,
            {name: trial.scores[name] for name in ("J&F", "worst third")},
            median(seconds),
            str(trial.method.describe()["sha256"]),
        )
        for method, trial, seconds in zip(chosen, trials, prices, strict=True)
    ]
    title = f"{', '.join(data.label or data.name + ' ' + data.split for data in sets)}; CPU time on {sequence.name}"
    print_table(front_table(models, title))
    print_notes((method.label, method.notes) for method in chosen)
    facts = {
        "sets": [
            {"label": data.label, "root": data.root, "split": data.split, "sequences": len(data.sequences)}
            for data in sets
        ],
        "price": {"sequence": sequence.name, "threads": THREADS, "objects": 1, "timed_frames": TIMED_FRAMES},
    }
    plot, values = options.out / "front.svg", options.out / "front.json"
    write_file(plot, front_svg(models, title))
    write_file(values, json.dumps(front_as_json(models, facts), indent=1) + "\n")
    console.print(f"wrote {plot} and {values}", markup=False)
    return models
