"""Training run of corrflow-train: data, resuming, progress and messages around the training loop."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from corrflow.errors import InputError
from corrflow.output_paths import check_apart, check_folder_of
from corrflow.stopping import stop_deferred
from corrflow.train.config import ModelConfig, TrainConfig, preset
from corrflow.train.options import TrainOptions

if TYPE_CHECKING:
    from corrflow.train.data.clips import ClipSampler
    from corrflow.train.distributed import DistributedContext
    from corrflow.train.teachers import Teachers


def available_threads() -> int:
    """Return the number of CPU cores for this process: its share of the cores of torchrun's processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def choose_precision(requested: str, device: str) -> str:
    """Replace `auto` by bfloat16 if the hardware multiplies it; emulation on a CPU is 30 times slower."""
    if requested != "auto":
        return requested
    torch = _torch()
    if device != "cpu" and torch.cuda.is_available():
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    in_hardware = any(
        getattr(torch.cpu, f"_is_{feature}_supported", lambda: False)() for feature in ("avx512_bf16", "amx_tile")
    )
    return "bfloat16" if in_hardware else "float32"


def run(options: TrainOptions) -> None:
    """Train, or resume the run in `options.out`. Raises InputError before anything is written."""
    _check_places(options)
    model = replace(preset(options.preset), stride=options.stride)
    config = options.config(choose_precision(options.precision, options.device), options.threads or available_threads())
    _torch()
    from corrflow.train.distributed import init_distributed

    with init_distributed(options.device) as context:
        _run(options, model, config, context)


def _check_places(options: TrainOptions) -> None:
    """Raise InputError where the run would mix with its data, or with files that no run has written."""
    data = Path(options.data)
    folders = [folder for folder in (data, options.images) if folder is not None and folder.is_dir()]
    check_apart([options.start_from, *(options.teacher or ())], folders=[options.out], trees=folders)
    check_folder_of(options.out, "checkpoint.safetensors", "log.jsonl", "tensorboard")


def _run(options: TrainOptions, model: ModelConfig, config: TrainConfig, context: DistributedContext) -> None:
    import torch

    from corrflow.train import loop
    from corrflow.train.checkpoint import load_checkpoint
    from corrflow.train.model import parameter_count
    from corrflow.train.trainer import Trainer

    context.check(config)
    torch.set_num_threads(config.threads)
    console = Console(stderr=True, quiet=not context.is_main)
    initial = load_checkpoint(options.start_from) if options.start_from else None
    normalised = config.has_target_network or (initial is not None and initial.model.feature_norm)
    model = replace(model, feature_norm=normalised and model.unit_norm)
    teachers = None
    if options.teacher:
        teachers = _load_teachers(options, model, config)
        config = replace(config, teacher=teachers.digest)
    workers = options.workers or max(1, min(8, config.threads // 2))
    saved = loop.resume(options.out, model, config)
    # Nothing is written before every process has read the checkpoint.
    (mean_step,) = context.mean([float(saved.step if saved else -1)])
    if mean_step != (saved.step if saved else -1):
        raise InputError(f"expected every process to see the run in {options.out}; put --out on a shared disk")
    with _open_data(options, config, context, console) as (sampler, provenance, description):
        if saved is not None:
            trainer, first_step = Trainer.create(model, saved.train, saved.codebook, context, teachers), saved.step
            trainer.load(saved)
            provenance = saved.provenance
            console.print(f"resuming {options.out} at step {first_step} of {saved.train.steps}")
        else:
            if options.minutes is not None:
                steps = loop.steps_in(options.minutes, model, config, sampler, context, teachers, workers)
                config = replace(config, steps=steps)
            trainer, first_step = loop.prepare(model, config, sampler, initial, context, teachers), 0
            records = [asdict(record) for record in teachers.records] if teachers is not None else []
            if initial is not None:
                earlier = initial.provenance
                records = [*earlier.get("teachers", []), *records]
                provenance |= {
                    "minutes": earlier.get("minutes", 0.0),
                    "steps_before": earlier.get("steps_before", 0) + initial.step,
                }
            if records:
                provenance["teachers"] = records
        options.out.mkdir(parents=True, exist_ok=True)
        steps = trainer.config.steps
        console.print(
            f"{parameter_count(trainer.encoder) / 1e6:.2f} M parameters, {description}, {steps} steps,"
            f" {config.precision}, {context.world_size} {'process' if context.world_size == 1 else 'processes'}"
            f" on {context.device.type}, {config.threads} threads each"
        )
        columns = (
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("loss {task.fields[loss]:.4f}"),
        )  # fmt: skip
        with stop_deferred():  # the loop ends after its step, and saves it
            with Progress(*columns, console=console, refresh_per_second=2) as bars:
                bar = bars.add_task("training", total=steps, completed=first_step, loss=float("nan"))
                recent_losses: list[float] = []

                def report(progress: loop.Progress) -> None:
                    recent_losses[:] = [*recent_losses[-49:], progress.loss]
                    bars.update(bar, completed=progress.step, loss=sum(recent_losses) / len(recent_losses))

                done = loop.train(
                    options.out, trainer, sampler, first_step, provenance, options.save_every,
                    options.log_images_every, report, workers=workers,
                    keep_every=options.keep_every,
                )  # fmt: skip
            if done < steps:
                console.print(f"stopped at step {done} of {steps}; the same command resumes the run")
            else:
                console.print(f"done: {steps} steps; next: corrflow-export onnx {options.out} ARTIFACT")


def _load_teachers(options: TrainOptions, model: ModelConfig, config: TrainConfig) -> Teachers:
    """Return the teachers; raise InputError if they, or a student of the shape `model`, cannot be used."""
    from corrflow.runtime.backends.onnx_encoder import OnnxEncoder, three_numbers
    from corrflow.train.teachers import load_teachers

    if not model.unit_norm:
        raise InputError(
            f"expected a student with features of unit length, got the preset {options.preset}; choose full, half or"
            " quarter"
        )
    mean = three_numbers("--teacher-mean", options.teacher_mean)
    std = three_numbers("--teacher-std", options.teacher_std)
    encoder = OnnxEncoder(Path(), options.teacher_layout, options.teacher_colours, mean, std)
    teachers = load_teachers(options.teacher or (), options.teacher_weight or (), encoder, config.threads)
    teachers.channels(config.pair_crop, model.stride)  # before anything is written or decoded
    return teachers


@contextmanager
def _open_data(
    options: TrainOptions, config: TrainConfig, context: DistributedContext, console: Console
) -> Iterator[tuple[ClipSampler, dict[str, Any], str]]:
    """Open the data of a run: clips, provenance for checkpoints, and a description for the user."""
    from corrflow.train import loop
    from corrflow.train.data.clips import CachedVideos, ClipSampler, open_cache
    from corrflow.train.data.download import public_name
    from corrflow.train.data.frames import find_images, find_videos
    from corrflow.train.data.shards import open_shards, shard_names

    shards = shard_names(options.data)
    video_paths = find_videos(Path(options.data)) if shards is None else []
    image_paths = find_images(options.images) if options.images else []
    cache_folder = options.cache or Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "corrflow"
    # The first process of a machine decodes the files; the others wait and then read the cache.
    if context.local_rank:
        context.barrier()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())

    with Progress(*columns, console=console) as bars:

        def cached(items: list[Path], title: str):
            bar = bars.add_task(title, total=len(items))
            result = open_cache(
                items, config.frames_per_second, 256, cache_folder, lambda done, _: bars.update(bar, completed=done)
            )
            bars.update(bar, completed=len(items))
            return result

        videos = cached(video_paths, "decoding videos") if shards is None else None
        images = cached(image_paths, "decoding images") if image_paths else None
    if not context.local_rank:
        context.barrier()
    for cache in (videos, images):
        for name, reason in cache.skipped.items() if cache else ():
            console.print(f"skipped {name}: {reason}", style="yellow", highlight=False)

    with ExitStack() as stack:
        if videos is not None:
            source = CachedVideos(videos, config.frames_needed, required=config.image_share < 1)
            counts = {"videos": len(videos), "video_frames": int(videos.starts[-1])}
            description = f"{len(videos)} videos"
        else:
            assert shards is not None
            source = stack.enter_context(
                open_shards(
                    shards, config.frames_needed, config.frames_per_second, config.seed, cache_folder / "shards",
                    options.timeout,
                )
            )  # fmt: skip
            counts = {"shards": len(shards)}
            description = f"{len(shards)} {'shard' if len(shards) == 1 else 'shards'}"
        names = [path.name for path in (*video_paths, *image_paths)]
        names += [PurePosixPath(public_name(shard)).name for shard in shards or ()]
        provenance = loop.new_provenance({**counts, "images": len(image_paths)}, names)
        yield ClipSampler(source, images, config), provenance, f"{description}, {len(image_paths)} images"


def _torch():
    try:
        import sklearn  # noqa: F401
        import tensorboard  # noqa: F401
        import torch
    except ImportError as error:
        raise InputError(f"training needs {error.name}, got none: pip install 'corrflow[train]'") from error
    return torch
