"""Training loop: steps, checkpoints, and the resuming of a stopped run."""

from __future__ import annotations

import hashlib
import platform
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from corrflow.errors import InputError
from corrflow.stopping import stop_deferred, stop_requested
from corrflow.train.checkpoint import FILE_NAME, Checkpoint, load_checkpoint, retained_checkpoint, save_checkpoint
from corrflow.train.colours import fit_colour_codebook
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.data.clips import ClipSampler
from corrflow.train.data.frame_pairs import FramePairSampler
from corrflow.train.data.pairs import Pairs, PairSampler
from corrflow.train.distributed import DistributedContext
from corrflow.train.model import STRIDE
from corrflow.train.run_logger import RunLogger
from corrflow.train.teachers import Teachers
from corrflow.train.trainer import Trainer
from corrflow.train.visualisation import feature_image, match_image, reconstruction_image

STOP_CHECK_SECONDS = 0.2
"""Seconds between two checks for a signal, while clips are awaited."""

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
    teachers: Teachers | None = None,
) -> Trainer:
    """Create a trainer at step 0, with random weights or with those of another run.

    Raises InputError for an initial checkpoint of another model.
    """
    if initial is not None and replace(initial.model, feature_norm=model.feature_norm) != model:
        raise InputError(f"expected a checkpoint of the shape {model}, got {initial.model}; choose that preset")
    codebook = torch.zeros(config.colours, 3 if config.lightness else 2)
    if context.is_main and config.uses_clips:
        frames = [sampler.clip(FIRST_CODEBOOK_CLIP + number)[0] for number in range(64)]
        codebook = fit_colour_codebook(frames, config.colours, config.lightness, config.seed)
    trainer = Trainer.create(model, config, context.broadcast(codebook), context, teachers)
    if initial is not None:
        trainer.start_from(initial)
    return trainer


def steps_in(
    minutes: float,
    model: ModelConfig,
    config: TrainConfig,
    sampler: ClipSampler,
    context: DistributedContext,
    teachers: Teachers | None = None,
    workers: int = 1,
) -> int:
    """Estimate the number of steps in `minutes` from five steps of a discarded trainer.

    workers: threads that load clips and pairs, which takes longer than the steps on a fast GPU
    """
    codebook = torch.zeros(config.colours, 3 if config.lightness else 2)
    trainer = Trainer.create(model, config, codebook, context, teachers)
    steps = max(5, workers)
    start = time.monotonic()
    with ThreadPoolExecutor(workers) as pool:
        batches = deque(pool.map(batch_loader(trainer, sampler), range(steps)), maxlen=5)
    loading = (time.monotonic() - start) / steps
    seconds = []
    for step, (clips, pairs, frame_pairs) in enumerate(batches):
        start = time.monotonic()
        trainer.step(clips, step, pairs, frame_pairs)
        seconds.append(time.monotonic() - start)
    # The first steps warm up caches and are not counted.
    typical = context.broadcast(torch.tensor(max(loading, np.median(seconds[2:])))).item()
    return max(1, round(minutes * 60 / typical))


Batch = tuple[np.ndarray | None, Pairs | None, np.ndarray | None]
"""Clips, pairs and frame pairs of a step as `Trainer.step` takes them."""


def batch_loader(trainer: Trainer, sampler: ClipSampler) -> Callable[[int], Batch]:
    """Return a function that loads this process's clips and pairs of a step, those that the objective uses."""
    config, context = trainer.config, trainer.context
    pair_sampler = PairSampler(sampler.videos, sampler.images, config, trainer.encoder.config.stride)
    frame_pair_sampler = FramePairSampler(sampler.videos, sampler.images, config)

    def load(step: int) -> Batch:
        clips = pairs = frame_pairs = None
        if config.uses_clips:
            clips = sampler.clips(context.clip_numbers(step, config.batch, config.accumulate))
        if config.uses_pairs:
            pairs = pair_sampler.pairs(context.clip_numbers(step, config.pairs, config.accumulate))
        if config.uses_frame_pairs:
            frame_pairs = frame_pair_sampler.pairs(context.clip_numbers(step, config.pairs, config.accumulate))
        return clips, pairs, frame_pairs

    return load


def resume(run: Path, model: ModelConfig, config: TrainConfig) -> Checkpoint | None:
    """Load the checkpoint to resume from, or return None for a new run.

    Raises InputError for a run with other settings. The number of steps is ignored: the run's first command fixed it.
    """
    if not (run / FILE_NAME).is_file():
        return None
    checkpoint = load_checkpoint(run)
    if checkpoint.train.teacher != config.teacher and checkpoint.train.objective == config.objective:
        raise InputError(
            f"expected the teachers of the run in {run}, got other or changed files; give the same teachers and"
            " weights in the same order, and a copy of a run that still changes"
        )
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

    workers:    threads that load clips and pairs, and number of steps that they load ahead
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

    load = batch_loader(trainer, sampler)
    step, stopping = first_step, False
    if context.is_main:
        for partial in run.glob(".checkpoint*.part"):  # of a killed run
            partial.unlink(missing_ok=True)
    with ExitStack() as stack:
        logger = stack.enter_context(RunLogger(run, config, first_step)) if context.is_main else None
        pool = ThreadPoolExecutor(workers)
        stack.callback(lambda: pool.shutdown(wait=not stop_requested(), cancel_futures=True))
        stack.enter_context(stop_deferred())
        upcoming = deque(pool.submit(load, ahead) for ahead in range(step, min(step + workers, last)))
        while step < last and not stopping:
            step_started = time.monotonic()
            loaded = upcoming.popleft()
            while not loaded.done() and not stop_requested():
                wait([loaded], STOP_CHECK_SECONDS)
            if not loaded.done():
                break
            clips, pairs, frame_pairs = loaded.result()
            if step + workers < last:
                upcoming.append(pool.submit(load, step + workers))
            result = trainer.step(clips, step, pairs, frame_pairs)
            step += 1
            names = list(result.losses(config))
            # A signal may reach only one process; all stop after the same step.
            *means, stop_share = context.mean([*result.losses(config).values(), float(stop_requested())])
            losses = dict(zip(names, means, strict=True))
            stopping = stop_share > 0
            seconds = time.monotonic() - step_started
            if logger is not None:
                logger.add_losses(step, losses, seconds)
                if step % log_images_every == 0 or step == last:
                    if clips is not None and result.predicted is not None and result.lab is not None:
                        image = reconstruction_image(clips, result.lab, result.predicted, trainer.codebook)
                        logger.add_image(step, "reconstructions", image)
                    _log_features(logger, trainer, step, clips, pairs, frame_pairs)
            if step % save_every == 0 or (keep_every is not None and step % keep_every == 0):
                save(step)
            report(Progress(step, config.steps, config.total(losses), seconds))
        save(step)
    return step


def _log_features(
    logger: RunLogger,
    trainer: Trainer,
    step: int,
    clips: np.ndarray | None,
    pairs: Pairs | None,
    frame_pairs: np.ndarray | None,
) -> None:
    """Log features and matches of the first clip, and of the first pairs, whose matches may be anywhere."""
    config = trainer.config
    if clips is not None:
        features = trainer.features(clips[0])
        logger.add_image(step, "features", feature_image(clips[0], features))
        radius = config.radius or config.crop // STRIDE
        logger.add_image(step, "matches", match_image(clips[0], features, radius))
    for name, crops in (("pair", None if pairs is None else pairs.crops), ("frame_pair", frame_pairs)):
        if crops is not None:
            features = trainer.features(crops[0])
            logger.add_image(step, f"{name}_features", feature_image(crops[0], features))
            logger.add_image(step, f"{name}_matches", match_image(crops[0], features, config.pair_crop // STRIDE))


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
