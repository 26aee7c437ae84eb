"""The training loop: steps one after another, checkpoints, and going on where a run was stopped."""

from __future__ import annotations

import platform
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corrflow.errors import InputError
from corrflow.train.checkpoint import FILE_NAME, Checkpoint, kept_checkpoint, load_checkpoint, save_checkpoint
from corrflow.train.colors import fit_colour_codebook
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.data.clips import ClipSampler
from corrflow.train.distributed import DistributedContext
from corrflow.train.learner import Trainer
from corrflow.train.model import STRIDE, Encoder
from corrflow.train.pictures import feature_picture, match_picture, reconstruction_picture
from corrflow.train.run_logger import RunLogger

# Pictures that the colour codebook is fitted to are of clips that no run is long enough to reach.
CODEBOOK_CLIPS = 2**62


@dataclass(frozen=True)
class Progress:
    """What a step reports to whoever watches."""

    step: int
    steps: int
    loss: float
    seconds: float


def prepare(
    model: ModelConfig,
    config: TrainConfig,
    sampler: ClipSampler,
    initial: Checkpoint | None,
    processes: DistributedContext,
    teacher: Encoder | None = None,
) -> Trainer:
    """A learner at step 0, from random weights or from those of another run."""
    if initial is not None and initial.model != model:
        raise InputError(f"expected a checkpoint of the shape {model}, got {initial.model}; choose that preset")
    codebook = torch.zeros(config.colours, 3 if config.lightness else 2)
    if processes.first and teacher is None:  # whose features are learned in place of colours
        pictures = [sampler.clip(CODEBOOK_CLIPS + number)[0] for number in range(64)]
        codebook = fit_colour_codebook(pictures, config.colours, config.lightness, config.seed)
    learner = Trainer.fresh(model, config, processes.from_first(codebook), processes, teacher)
    if initial is not None:
        learner.start_from(initial)
    return learner


def steps_in(
    minutes: float,
    model: ModelConfig,
    config: TrainConfig,
    sampler: ClipSampler,
    processes: DistributedContext,
    teacher: Encoder | None = None,
) -> int:
    """How many steps fit into `minutes`, measured on a learner that is thrown away."""
    codebook = torch.zeros(config.colours, 3 if config.lightness else 2)
    learner = Trainer.fresh(model, config, codebook, processes, teacher)
    seconds = []
    for step in range(5):
        clips = sampler.clips(processes.clip_numbers(step, config.batch, config.accumulate))
        start = time.monotonic()
        learner.step(clips, step)
        seconds.append(time.monotonic() - start)
    # The first steps warm caches up and are left out.
    typical = processes.from_first(torch.tensor(np.median(seconds[2:]))).item()
    return max(1, round(minutes * 60 / typical))


def resume(run: Path, model: ModelConfig, config: TrainConfig) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a new run; raises InputError where the run has other settings.

    The number of steps is the run's own: it was fixed when the run began.
    """
    if not (run / FILE_NAME).is_file():
        return None
    checkpoint = load_checkpoint(run)
    free = {"steps": 1, "threads": 1, "compile": False}
    if checkpoint.model != model or replace(checkpoint.train, **free) != replace(config, **free):
        raise InputError(
            f"{run} holds a run with other settings ({checkpoint.model}, {checkpoint.train});"
            " give the same options to go on with it, or another --out"
        )
    return checkpoint


def train(
    run: Path,
    learner: Trainer,
    sampler: ClipSampler,
    first_step: int,
    provenance: dict[str, Any],
    save_every: int,
    picture_every: int,
    report: Callable[[Progress], None] = lambda progress: None,
    stop_at: int | None = None,
    workers: int = 1,
    keep_every: int | None = None,
) -> int:
    """Train until the run's last step, a signal, or `stop_at`; returns the number of steps done.

    workers:    threads that draw clips, and steps that they are ahead
    keep_every: steps between checkpoints that stay, besides the newest

    The first process writes into `run`: checkpoint.safetensors, log.jsonl, events for TensorBoard and pictures.
    """
    config, processes = learner.config, learner.processes
    minutes_before = float(provenance.get("minutes", 0.0))
    started = time.monotonic()
    last = min(config.steps, stop_at if stop_at is not None else config.steps)

    def save(step: int) -> None:
        if processes.first:
            minutes = round(minutes_before + (time.monotonic() - started) / 60, 1)
            checkpoint = learner.checkpoint(step, provenance | {"minutes": minutes})
            if keep_every is not None and step % keep_every == 0:
                save_checkpoint(kept_checkpoint(run, step), checkpoint)
            save_checkpoint(run / FILE_NAME, checkpoint)

    def draw(step: int) -> np.ndarray:
        return sampler.clips(processes.clip_numbers(step, config.batch, config.accumulate))

    step, stopping = first_step, False
    if processes.first:
        for abandoned in run.glob(".checkpoint*.part"):  # being written at a kill
            abandoned.unlink(missing_ok=True)
    with ExitStack() as stack:
        records = stack.enter_context(RunLogger(run, config, first_step)) if processes.first else None
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        stop_requested = stack.enter_context(_stop_requests())
        upcoming = deque(pool.submit(draw, ahead) for ahead in range(step, min(step + workers, last)))
        while step < last and not stopping:
            begun = time.monotonic()
            clips = upcoming.popleft().result()
            if step + workers < last:
                upcoming.append(pool.submit(draw, step + workers))
            result = learner.step(clips, step)
            step += 1
            # A signal may have reached one process alone; all stop after the same step.
            forward, cycle, asked = processes.mean([result.forward, result.cycle, float(stop_requested())])
            stopping = asked > 0
            seconds = time.monotonic() - begun
            if records is not None:
                records.add(step, forward, cycle, seconds)
                if step % picture_every == 0 or step == last:
                    if result.copied is not None and result.lab is not None:
                        copied = reconstruction_picture(clips, result.lab, result.copied, learner.codebook)
                        records.picture(step, "reconstructions", copied)
                    features = learner.features(clips[0])
                    radius = config.radius or config.crop // STRIDE
                    records.picture(step, "features", feature_picture(clips[0], features))
                    records.picture(step, "matches", match_picture(clips[0], features, radius))
                if step % save_every == 0:
                    records.flush()
            if step % save_every == 0 or (keep_every is not None and step % keep_every == 0):
                save(step)
            report(Progress(step, config.steps, forward + config.cycle_weight * cycle, seconds))
        if records is not None:
            records.flush()
        save(step)
    return step


def new_provenance(data: dict[str, int], sources: list[str]) -> dict[str, Any]:
    """What a checkpoint says of where its weights come from; data: how much of what kind."""
    return {
        **data,
        "sources": sources,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "minutes": 0.0,
    }


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Let SIGINT and SIGTERM end the run after the step at hand, with a checkpoint."""
    requested: list[int] = []

    def remember(number: int, _: object) -> None:
        requested.append(number)

    try:
        before = {number: signal.signal(number, remember) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # not in the main thread, where nobody can send us a signal
        yield lambda: False
        return
    try:
        yield lambda: bool(requested)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
