"""Training loop: steps, checkpoints, and the resuming of a stopped run."""

from __future__ import annotations

import hashlib
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
from corrflow.train.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, retained_checkpoint, save_checkpoint
from corrflow.train.colours import fit_colour_codebook
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.data.clips import ClipSampler
from corrflow.train.distributed import DistributedContext
from corrflow.train.model import STRIDE, Encoder
from corrflow.train.run_logger import RunLogger
from corrflow.train.trainer import Trainer
from corrflow.train.visualisation import feature_image, match_image, reconstruction_image

# First clip number for the colour codebook; no run is long enough to train on these clips.
FIRST_CODEBOOK_CLIP = 2**62


@dataclass(frozen=True)
class Progress:
    """Progress report after a step."""

    step: int
    steps: int
    loss: float
    seconds: float


def prepare(
    model: ModelConfig,
    config: TrainConfig,
    sampler: ClipSampler,
    initial: Checkpoint | None,
    context: DistributedContext,
    teacher: Encoder | None = None,
) -> Trainer:
    """Create a trainer at step 0, with random weights or with those of another run.

    Raises InputError for an initial checkpoint of another model.
    """
    if initial is not None and initial.model != model:
        raise InputError(f"expected a checkpoint of the shape {model}, got {initial.model}; choose that preset")
    codebook = torch.zeros(config.colours, 3 if config.lightness else 2)
    if context.is_main and teacher is None:  # a teacher's features replace colours
        frames = [sampler.clip(FIRST_CODEBOOK_CLIP + number)[0] for number in range(64)]
        codebook = fit_colour_codebook(frames, config.colours, config.lightness, config.seed)
    trainer = Trainer.create(model, config, context.broadcast(codebook), context, teacher)
    if initial is not None:
        trainer.start_from(initial)
    return trainer


def steps_in(
    minutes: float,
    model: ModelConfig,
    config: TrainConfig,
    sampler: ClipSampler,
    context: DistributedContext,
    teacher: Encoder | None = None,
) -> int:
    """Estimate the number of steps in `minutes` from five steps of a discarded trainer."""
    codebook = torch.zeros(config.colours, 3 if config.lightness else 2)
    trainer = Trainer.create(model, config, codebook, context, teacher)
    seconds = []
    for step in range(5):
        clips = sampler.clips(context.clip_numbers(step, config.batch, config.accumulate))
        start = time.monotonic()
        trainer.step(clips, step)
        seconds.append(time.monotonic() - start)
    # The first steps warm up caches and are not counted.
    typical = context.broadcast(torch.tensor(np.median(seconds[2:]))).item()
    return max(1, round(minutes * 60 / typical))


def resume(run: Path, model: ModelConfig, config: TrainConfig) -> Checkpoint | None:
    """Load the checkpoint to resume from, or return None for a new run.

    Raises InputError for a run with other settings. The number of steps is ignored: the run's first command fixed it.
    """
    if not (run / FILE_NAME).is_file():
        return None
    checkpoint = load_checkpoint(run)
    ignored = {"steps": 1, "threads": 1, "compile": False}
    if checkpoint.model != model or replace(checkpoint.train, **ignored) != replace(config, **ignored):
        raise InputError(
            f"{run} holds a run with other settings ({checkpoint.model}, {checkpoint.train});"
            " give the same options to resume it, or another --out"
        )
    return checkpoint


def train(
    run: Path,
    trainer: Trainer,
    sampler: ClipSampler,
    first_step: int,
    provenance: dict[str, Any],
    save_every: int,
    log_images_every: int,
    report: Callable[[Progress], None] = lambda progress: None,
    stop_at: int | None = None,
    workers: int = 1,
    keep_every: int | None = None,
) -> int:
    """Train until the run's last step, a signal, or `stop_at`; return the number of completed steps.

    workers:    threads that load clips, and number of steps that they load ahead
    keep_every: steps between retained checkpoints

    The main process writes into `run`: checkpoint.safetensors, log.jsonl, TensorBoard events and images.
    """
    config, context = trainer.config, trainer.context
    minutes_before = float(provenance.get("minutes", 0.0))
    started = time.monotonic()
    last = min(config.steps, stop_at if stop_at is not None else config.steps)

    def save(step: int) -> None:
        if context.is_main:
            minutes = round(minutes_before + (time.monotonic() - started) / 60, 1)
            checkpoint = trainer.checkpoint(step, provenance | {"minutes": minutes})
            if keep_every is not None and step % keep_every == 0:
                save_checkpoint(retained_checkpoint(run, step), checkpoint)
            save_checkpoint(run / FILE_NAME, checkpoint)

    def load_clips(step: int) -> np.ndarray:
        return sampler.clips(context.clip_numbers(step, config.batch, config.accumulate))

    step, stopping = first_step, False
    if context.is_main:
        for partial in run.glob(".checkpoint*.part"):  # of a killed run
            partial.unlink(missing_ok=True)
    with ExitStack() as stack:
        logger = stack.enter_context(RunLogger(run, config, first_step)) if context.is_main else None
        pool = ThreadPoolExecutor(workers)
        stack.callback(pool.shutdown, cancel_futures=True)
        stop_requested = stack.enter_context(_stop_requests())
        upcoming = deque(pool.submit(load_clips, ahead) for ahead in range(step, min(step + workers, last)))
        while step < last and not stopping:
            step_started = time.monotonic()
            clips = upcoming.popleft().result()
            if step + workers < last:
                upcoming.append(pool.submit(load_clips, step + workers))
            result = trainer.step(clips, step)
            step += 1
            # A signal may reach only one process; all stop after the same step.
            forward, cycle, stop_share = context.mean([result.forward, result.cycle, float(stop_requested())])
            stopping = stop_share > 0
            seconds = time.monotonic() - step_started
            if logger is not None:
                logger.add_losses(step, forward, cycle, seconds)
                if step % log_images_every == 0 or step == last:
                    if result.predicted is not None and result.lab is not None:
                        image = reconstruction_image(clips, result.lab, result.predicted, trainer.codebook)
                        logger.add_image(step, "reconstructions", image)
                    features = trainer.features(clips[0])
                    radius = config.radius or config.crop // STRIDE
                    logger.add_image(step, "features", feature_image(clips[0], features))
                    logger.add_image(step, "matches", match_image(clips[0], features, radius))
                if step % save_every == 0:
                    logger.flush()
            if step % save_every == 0 or (keep_every is not None and step % keep_every == 0):
                save(step)
            report(Progress(step, config.steps, forward + config.cycle_weight * cycle, seconds))
        if logger is not None:
            logger.flush()
        save(step)
    return step


def new_provenance(counts: dict[str, int], sources: list[str]) -> dict[str, Any]:
    """Return the origin of the weights for checkpoints: data, digest of its file names in order, versions."""
    names = "\n".join(sources)
    return {
        **counts,
        "sources": {"count": len(sources), "sha256": hashlib.sha256(names.encode()).hexdigest()},
        "torch": torch.__version__,
        "machine": platform.machine(),
        "minutes": 0.0,
    }


@contextmanager
def _stop_requests() -> Iterator[Callable[[], bool]]:
    """Catch SIGINT and SIGTERM; the yielded function returns True after either of them."""
    received: list[int] = []

    def record(number: int, _: object) -> None:
        received.append(number)

    try:
        previous = {number: signal.signal(number, record) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # outside the main thread, which alone receives signals
        yield lambda: False
        return
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
