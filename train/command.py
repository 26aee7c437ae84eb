"""What corrflow-train does between reading its options and the loop: data, resuming, progress, last words."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from corrflow.errors import InputError
from corrflow.train.config import ModelConfig, TrainConfig

if TYPE_CHECKING:
    from corrflow.train.data.clips import ClipSampler
    from corrflow.train.distributed import DistributedContext
    from corrflow.train.model import Encoder


@dataclass(frozen=True)
class Request:
    """The options that are not part of what is learned."""

    data: str
    stills: Path | None
    out: Path
    cache: Path | None
    minutes: float | None
    start_from: Path | None
    teacher: Path | None
    save_every: int
    picture_every: int
    device: str
    workers: int
    keep_every: int | None
    timeout: float


def available_threads() -> int:
    """CPU cores for this process: its share of those that torchrun's processes on this machine may use."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def choose_precision(asked: str, device: str) -> str:
    """`auto` becomes bfloat16 where it is multiplied in hardware; on a processor, emulation is 30 times slower."""
    if asked != "auto":
        return asked
    torch = _torch()
    if device != "cpu" and torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    hardware = any(
        getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)() for feature in ("avx512_bf16", "amx_tile")
    )
    return "bfloat16" if hardware else "float32"


def run(request: Request, model: ModelConfig, config: TrainConfig) -> None:
    """Train, or go on with the run in `request.out`. Raises InputError before anything is written."""
    _torch()
    from corrflow.train.distributed import init_distributed

    with init_distributed(request.device) as processes:
        _run(request, model, config, processes)


def _run(request: Request, model: ModelConfig, config: TrainConfig, processes: DistributedContext) -> None:
    import torch

    from corrflow.train import loop
    from corrflow.train.checkpoint import digest, load_checkpoint
    from corrflow.train.learner import Trainer
    from corrflow.train.model import parameter_count

    processes.clip_numbers(0, config.batch, config.accumulate)  # raises where they cannot be shared out
    torch.set_num_threads(config.threads)
    console = Console(stderr=True, quiet=not processes.first)
    teacher = _teacher(request.teacher, model)
    if teacher is not None:
        config = replace(config, teacher=digest(teacher.state_dict()))
    saved = loop.resume(request.out, model, config)
    # Nothing is written before everyone has read it.
    (mean_step,) = processes.mean([float(saved.step if saved else -1)])
    if mean_step != (saved.step if saved else -1):
        raise InputError(f"expected every process to see the run in {request.out}; put --out on a shared disk")
    initial = load_checkpoint(request.start_from) if request.start_from else None
    with _data(request, config, processes, console) as (sampler, provenance, described):
        if saved is not None:
            learner, first = Trainer.fresh(model, saved.train, saved.codebook, processes, teacher), saved.step
            learner.load(saved)
            provenance = saved.provenance
            console.print(f"going on with {request.out} at step {first} of {saved.train.steps}")
        else:
            if request.minutes is not None:
                steps = loop.steps_in(request.minutes, model, config, sampler, processes, teacher)
                config = replace(config, steps=steps)
            learner, first = loop.prepare(model, config, sampler, initial, processes, teacher), 0
            if initial is not None:
                before = initial.provenance
                provenance |= {
                    "minutes": before.get("minutes", 0.0),
                    "steps_before": before.get("steps_before", 0) + initial.step,
                }
        request.out.mkdir(parents=True, exist_ok=True)
        steps = learner.config.steps
        console.print(
            f"{parameter_count(learner.encoder) / 1e6:.2f} M parameters, {described}, {steps} steps,"
            f" {config.precision}, {processes.count} {'process' if processes.count == 1 else 'processes'}"
            f" on {processes.device.type}, {config.threads} threads each"
        )
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.4f}"),
        )  # fmt: skip
        with Progress(*columns, console=console, refresh_per_second=2) as bars:
            bar = bars.add_task("training", total=steps, completed=first, loss=float("nan"))
            smooth: list[float] = []

            def report(progress: loop.Progress) -> None:
                smooth[:] = [*smooth[-49:], progress.loss]
                bars.update(bar, completed=progress.step, loss=sum(smooth) / len(smooth))

            done = loop.train(
                request.out, learner, sampler, first, provenance, request.save_every, request.picture_every, report,
                workers=request.workers, keep_every=request.keep_every,
            )  # fmt: skip
        if done < steps:
            console.print(f"stopped at step {done} of {steps}; the same command goes on from there")
        else:
            console.print(f"done: {steps} steps; next: corrflow-export onnx {request.out} ARTIFACT")


def _teacher(path: Path | None, model: ModelConfig) -> Encoder | None:
    """The encoder whose features are learned, where one is named; raises InputError where they are of another kind."""
    if path is None:
        return None
    from corrflow.train.checkpoint import load_checkpoint

    teacher = load_checkpoint(path).encoder()
    own, given = model, teacher.config
    if not (own.unit_norm and given.unit_norm) or own.feature_channels != given.feature_channels:
        raise InputError(
            f"expected a teacher and a preset with features of unit length and as many channels, got"
            f" {given.feature_channels} channels, unit_norm {given.unit_norm}, for the preset's {own.feature_channels}"
            f" and {own.unit_norm}; choose another of either"
        )
    return teacher


@contextmanager
def _data(
    request: Request, config: TrainConfig, processes: DistributedContext, console: Console
) -> Iterator[tuple[ClipSampler, dict[str, Any], str]]:
    """The clips of a run, what its checkpoints say of them, and what whoever watches is told."""
    from corrflow.train import loop
    from corrflow.train.data.clips import CachedVideos, ClipSampler, open_cache
    from corrflow.train.data.download import public_name
    from corrflow.train.data.frames import find_pictures, find_videos
    from corrflow.train.data.shards import open_shards, shard_names

    shards = shard_names(request.data)
    videos = find_videos(Path(request.data)) if shards is None else []
    stills = find_pictures(request.stills) if request.stills else []
    cache_folder = request.cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "corrflow"
    # One process of each machine decodes what the others of that machine then read.
    if processes.local_rank:
        processes.wait_for_all()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    with Progress(*columns, console=console) as bars:

        def cached(items: list[Path], title: str):
            bar = bars.add_task(title, total=len(items))
            result = open_cache(
                items, config.frames_per_second, 256, cache_folder, lambda done, _: bars.update(bar, completed=done)
            )
            bars.update(bar, completed=len(items))
            return result

        clips = cached(videos, "decoding videos") if shards is None else None
        pictures = cached(stills, "decoding photographs") if stills else None
    if not processes.local_rank:
        processes.wait_for_all()
    for cache in (clips, pictures):
        for name, reason in cache.skipped.items() if cache else ():
            console.print(f"left out {name}: {reason}", style="yellow", highlight=False)

    with ExitStack() as stack:
        if clips is not None:
            source = CachedVideos(clips, config.frames, needed=config.image_share < 1)
            data = {"videos": len(clips), "video_frames": int(clips.starts[-1]), "stills": len(stills)}
            named = f"{len(clips)} videos"
        else:
            assert shards is not None
            source = stack.enter_context(
                open_shards(
                    shards, config.frames, config.frames_per_second, config.seed, cache_folder / "shards",
                    request.timeout,
                )
            )  # fmt: skip
            data = {"shards": len(shards), "stills": len(stills)}
            named = f"{len(shards)} {'shard' if len(shards) == 1 else 'shards'}"
        sources = [path.name for path in (*videos, *stills)] + [
            PurePosixPath(public_name(shard)).name for shard in shards or ()
        ]
        described = f"{named}, {len(stills)} photographs"
        yield ClipSampler(source, pictures, config), loop.new_provenance(data, sources), described


def _torch():
    try:
        import sklearn  # noqa: F401
        import tensorboard  # noqa: F401
        import torch
    except ImportError as error:
        raise InputError(f"training needs {error.name}, got none: pip install 'corrflow[train]'") from error
    return torch
