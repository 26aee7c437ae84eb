"""The training loop: steps, schedules, logs, pictures, checkpoints, and going on where a run was stopped."""

from __future__ import annotations

import json
import platform
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from corrflow.plugins.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.spec import Attributes
from corrflow.train.checkpoint import (
    FILE_NAME,
    Checkpoint,
    load_checkpoint,
    optimiser_tensors,
    restore_optimiser,
    save_checkpoint,
)
from corrflow.train.clips import ClipSampler
from corrflow.train.colors import (
    bottlenecked,
    cell_colours,
    colour_classes,
    fit_colour_codebook,
    rgb_to_lab,
)
from corrflow.train.config import ModelConfig, TrainConfig
from corrflow.train.losses import Reconstruction, reconstruct
from corrflow.train.model import STRIDE, Encoder, new_encoder

LOG_NAME = "log.jsonl"


@dataclass(frozen=True)
class Progress:
    """What a step reports to whoever watches."""

    step: int
    steps: int
    loss: float
    seconds: float


@dataclass
class Learner:
    """The state that a step changes, and nothing else."""

    encoder: Encoder
    optimiser: torch.optim.Adam
    codebook: Tensor
    config: TrainConfig
    names: list[str]

    @classmethod
    def fresh(cls, model: ModelConfig, config: TrainConfig, codebook: Tensor) -> Learner:
        encoder = new_encoder(model, config.seed).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        optimiser = torch.optim.Adam(encoder.parameters(), lr=config.learning_rate)
        return cls(encoder.train(), optimiser, codebook, config, [name for name, _ in encoder.named_parameters()])

    def load(self, checkpoint: Checkpoint) -> None:
        self.encoder.load_state_dict(checkpoint.model_state)
        restore_optimiser(self.optimiser, self.names, checkpoint.optimiser)

    def step(self, clips: np.ndarray, step: int) -> tuple[Reconstruction, Tensor]:
        """One optimiser step on clips [B, T, S, S, 3] uint8, RGB; returns what was copied, and the clips in Lab."""
        config = self.config
        generator = np.random.default_rng([config.seed, step, 1])  # apart from the stream that draws the clips
        frames = torch.from_numpy(clips).permute(0, 1, 4, 2, 3).float() / 255
        B, T = frames.shape[:2]
        with torch.no_grad():
            lab = rgb_to_lab(frames)
            cells = cell_colours(lab.flatten(0, 1), self.codebook).unflatten(0, (B, T))
            classes = colour_classes(lab.flatten(0, 1), self.codebook).unflatten(0, (B, T))
            images = bottlenecked(frames, generator, config.dropout, config.jitter, config.grey_input)
        use_truth = torch.from_numpy(generator.random((B, T - 1)) < config.truth_probability_at(step))

        with torch.autocast("cpu", torch.bfloat16, enabled=config.precision == "bfloat16"):
            features = self.encoder(images.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        radius = config.radius or config.crop // STRIDE  # 0: the whole frame
        result = reconstruct(
            features.float().contiguous().unflatten(0, (B, T)),
            cells,
            classes,
            use_truth,
            Attributes((radius,), temperature=config.temperature),
            with_cycle=config.cycle_weight > 0,
        )
        loss = result.forward + config.cycle_weight * result.cycle
        if not torch.isfinite(loss):
            raise CorrflowError(
                f"the loss is {loss.item()} at step {step}; the last checkpoint is good: lower --learning-rate"
            )
        for group in self.optimiser.param_groups:
            group["lr"] = config.learning_rate_at(step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return result, lab

    def checkpoint(self, step: int, provenance: dict[str, Any]) -> Checkpoint:
        return Checkpoint(
            self.encoder.config,
            self.config,
            step,
            self.encoder.state_dict(),
            optimiser_tensors(self.optimiser, self.names),
            self.codebook,
            provenance,
        )


def prepare(model: ModelConfig, config: TrainConfig, sampler: ClipSampler, initial: Checkpoint | None) -> Learner:
    """A learner at step 0, from random weights or from those of another run."""
    if initial is not None and initial.model != model:
        raise InputError(f"expected a checkpoint of the shape {model}, got {initial.model}; choose that preset")
    pictures = [picture for step in range(-32, 0) for picture in sampler.clips(step & 0xFFFFFFFF, 2)[:, 0]]
    codebook = fit_colour_codebook(pictures, config.colours, config.lightness, config.seed)
    learner = Learner.fresh(model, config, codebook)
    if initial is not None:
        learner.encoder.load_state_dict(initial.model_state)
    return learner


def steps_in(minutes: float, model: ModelConfig, config: TrainConfig, sampler: ClipSampler) -> int:
    """How many steps fit into `minutes`, measured on a learner that is thrown away."""
    learner = Learner.fresh(model, config, torch.zeros(config.colours, 3 if config.lightness else 2))
    seconds = []
    for step in range(5):
        clips = sampler.clips(step, config.batch)
        start = time.monotonic()
        learner.step(clips, step)
        seconds.append(time.monotonic() - start)
    # The first steps warm caches up and are left out.
    return max(1, round(minutes * 60 / float(np.median(seconds[2:]))))


def resume(run: Path, model: ModelConfig, config: TrainConfig) -> Checkpoint | None:
    """The checkpoint to go on from, or None for a new run; raises InputError where the run has other settings.

    The number of steps is the run's own: it was fixed when the run began.
    """
    if not (run / FILE_NAME).is_file():
        return None
    checkpoint = load_checkpoint(run)
    free = {"steps": 1, "threads": 1}
    if checkpoint.model != model or replace(checkpoint.train, **free) != replace(config, **free):
        raise InputError(
            f"{run} holds a run with other settings ({checkpoint.model}, {checkpoint.train});"
            " give the same options to go on with it, or another --out"
        )
    return checkpoint


def train(
    run: Path,
    learner: Learner,
    sampler: ClipSampler,
    first_step: int,
    provenance: dict[str, Any],
    save_every: int,
    picture_every: int,
    report: Callable[[Progress], None] = lambda progress: None,
    stop_at: int | None = None,
) -> int:
    """Train until the run's last step, a signal, or `stop_at`; returns the number of steps done.

    Writes into `run`: checkpoint.safetensors, log.jsonl, events for TensorBoard and pictures of reconstructions.
    """
    from torch.utils.tensorboard import SummaryWriter

    config = learner.config
    log = _log_up_to(run / LOG_NAME, first_step)
    minutes_before = float(provenance.get("minutes", 0.0))
    started = time.monotonic()
    last = min(config.steps, stop_at if stop_at is not None else config.steps)

    def save(step: int) -> None:
        minutes = round(minutes_before + (time.monotonic() - started) / 60, 1)
        save_checkpoint(run / FILE_NAME, learner.checkpoint(step, provenance | {"minutes": minutes}))

    step = first_step
    writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)
    with log.open("a") as lines, ThreadPoolExecutor(1) as pool, _stop_requests() as stop_requested, writer:
        upcoming = pool.submit(sampler.clips, step, config.batch)
        while step < last and not stop_requested():
            begun = time.monotonic()
            clips = upcoming.result()
            upcoming = pool.submit(sampler.clips, step + 1, config.batch)
            result, lab = learner.step(clips, step)
            step += 1

            forward, cycle = result.forward.item(), result.cycle.item()
            seconds = time.monotonic() - begun
            line = {"step": step, "forward": forward, "cycle": cycle, "seconds": round(seconds, 3)}
            lines.write(json.dumps(line) + "\n")
            writer.add_scalar("loss/forward", forward, step)
            writer.add_scalar("loss/cycle", cycle, step)
            writer.add_scalar("schedule/learning_rate", config.learning_rate_at(step - 1), step)
            writer.add_scalar("schedule/truth_probability", config.truth_probability_at(step - 1), step)
            if step % picture_every == 0 or step == last:
                picture = reconstruction_picture(clips, lab, result.copied, learner.codebook)
                writer.add_image("reconstruction", picture, step, dataformats="HWC")
                (run / "reconstructions").mkdir(exist_ok=True)
                cv2.imwrite(str(run / "reconstructions" / f"{step:07d}.jpg"), picture[..., ::-1])
            if step % save_every == 0:
                lines.flush()
                save(step)
            report(Progress(step, config.steps, forward + config.cycle_weight * cycle, seconds))
        lines.flush()
        save(step)
    return step


def reconstruction_picture(clips: np.ndarray, lab: Tensor, copied: Tensor, codebook: Tensor) -> np.ndarray:
    """For up to four clips, one row each: frame 0, the true last frame, and the last frame in copied colours.

    Returns [rows * S, 3 * S, 3] uint8, RGB. Where the classes have no lightness, it is the true one that is shown.
    """
    rows = []
    for clip in range(min(4, len(clips))):
        colours = torch.einsum("khw,kc->chw", copied[clip, -1].detach(), codebook)
        colours = torch.nn.functional.interpolate(colours[None], size=lab.shape[-2:], mode="bilinear")[0]
        recoloured = torch.cat([lab[clip, -1, : 3 - len(colours)], colours]).permute(1, 2, 0).contiguous().numpy()
        rgb = cv2.cvtColor(recoloured.astype(np.float32), cv2.COLOR_Lab2RGB)
        shown = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
        rows.append(np.concatenate([clips[clip, 0], clips[clip, -1], shown], 1))
    return np.concatenate(rows, 0)


def new_provenance(videos: int, video_frames: int, stills: int, sources: list[str]) -> dict[str, Any]:
    """What a checkpoint says of where its weights come from."""
    return {
        "videos": videos,
        "video_frames": video_frames,
        "stills": stills,
        "sources": sources,
        "torch": torch.__version__,
        "machine": platform.machine(),
        "minutes": 0.0,
    }


def _log_up_to(path: Path, step: int) -> Path:
    """Drop what a killed run logged after its last checkpoint, so that no step stands in the log twice."""
    if path.is_file():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                break  # the line being written at the kill
        path.write_text("".join(f"{line}\n" for line in kept))
    return path


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
