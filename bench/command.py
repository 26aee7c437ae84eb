"""What corrflow-bench does between reading its options and measuring: tables, progress, the JSON file."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corrflow.bench.report import check_output, environment, wide_console, write_json
from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.cpu import available_threads

DEMO_FRAMES = 60


def run_op(
    sizes: tuple[int, int, int, int, int],
    windows: Sequence[tuple[int, int]],
    chosen: Sequence[str],
    rounds: int,
    with_memory: bool,
    threads: int,
    json: Path | None,
) -> None:
    """corrflow-bench op. sizes: rows, columns, channels, classes, references; windows: (radius, top_k) of each case."""
    from corrflow.bench.op import op
    from corrflow.bench.op.forms import Case

    check_output(json)
    threads = threads or available_threads()
    about, console = environment(threads), wide_console()
    cases = [Case(*sizes, *window) for window in windows]
    with Console(stderr=True).status("") as status:
        results = op.run_cases(cases, chosen, rounds, threads, with_memory, status.update)
    console.print(f"{about['processor']}, {threads} threads", highlight=False)
    for result in results:
        console.print(_table(result.case.title, op.TABLE_COLUMNS, op.table_rows(result)))
        for name, found in result.forms.items():
            if found.skipped:
                console.print(f"{name}: {found.skipped}", highlight=False)
        products = ", ".join(f"{rate / 1e9:.0f} ({name})" for name, rate in result.product_rates.items())
        console.print(
            f"fp32 matrix product, GFLOP/s: {products}; copy {result.copy_rate / 1e9:.1f} GB/s", highlight=False
        )
    if json is not None:
        write_json(json, {"environment": about, "op": [op.description(result) for result in results]})


def run_kernel(runs: int, json: Path | None) -> None:
    """corrflow-bench kernel. Raises InputError where there is no GPU, CorrflowError where its results are wrong."""
    from corrflow.bench.op import cuda_kernel as kernel

    check_output(json)
    gpu, console = kernel.OnGpu(), wide_console()
    console.print(f"{gpu.device.gpu}, compute capability {gpu.device.compute_capability}", highlight=False)
    wrong, found = [], []
    table = Table("case", "storage", "largest", "beyond", title="the CUDA kernel against the CPU")
    for name, case in (kernel.CASES | kernel.NAMED_CASES | kernel.TIMED).items():
        for storage in kernel.STORAGES:
            for ties in (False, True):
                title = f"{name}{', ties' if ties else ''}"
                seen = kernel.compare(gpu, case, storage, ties)
                table.add_row(title, storage, f"{seen.largest:.1e}", f"{seen.beyond:.2%}")
                found.append({"case": title, "storage": storage, **asdict(seen), "holds": seen.holds})
                if not seen.holds:
                    wrong.append(f"{title} in {storage}")
    console.print(table)
    times = []
    for name, case in kernel.TIMED.items():
        for storage in kernel.STORAGES:
            tensors = kernel.tensors_of(case, storage, ties=False)
            times.append({"case": name, "storage": storage, "ms": gpu.milliseconds(case, storage, tensors, runs)})
            console.print(f"{times[-1]['ms']:.3f} ms a launch: {name}, {storage}", highlight=False)
    gpu.device.close()
    if json is not None:
        write_json(json, {"gpu": gpu.device.gpu, "agreement": found, "times": times})
    if wrong:
        raise CorrflowError(
            f"the GPU copies other labels than the CPU in {len(wrong)} cases, the first being {wrong[0]}"
        )


@dataclass(frozen=True)
class TrackRequest:
    """The options of corrflow-bench track; an empty video, artifacts or rows stand for the defaults."""

    video: Path | None
    init: Path | None
    artifacts: tuple[Path, ...]
    size: tuple[int, int]
    short_side: tuple[int, ...]
    memory_frames: int
    timed: int
    rounds: int
    peer: bool
    frames: int
    threads: int
    json: Path | None
    backend: str = "auto"


def run_track(request: TrackRequest) -> None:
    """corrflow-bench track. Raises InputError for what is wrong with files or options before anything is timed."""
    from corrflow.bench import track
    from corrflow.bench.clips import write_demo
    from corrflow.runtime.artifacts.artifact import load_artifact
    from corrflow.runtime.artifacts.bundled import resolve_model

    check_output(request.json)
    threads = request.threads or available_threads()
    cv2.setNumThreads(threads)
    rows = list(request.short_side) or ([240] if request.frames else [480, 240])
    about, console = environment(threads), wide_console()
    artifacts = [load_artifact(resolve_model(path)) for path in request.artifacts or (None,)]
    if len({artifact.name for artifact in artifacts}) < len(artifacts):
        raise InputError("expected artifacts of different names, got one twice; rename a folder")
    if request.peer and not request.frames and "quantised" in artifacts[0].provenance:
        raise InputError("expected an fp32 artifact first, whose weights the peer takes, got int8; swap them")
    with tempfile.TemporaryDirectory() as folder:
        if request.video is None:
            path, mask = write_demo(Path(folder), request.size, DEMO_FRAMES)
            clip = track.Clip(path, request.size, mask)
        else:
            assert request.init is not None
            clip = _clip(request.video, request.init, request.size)
        if request.frames:
            if len(artifacts) > 1 or len(rows) > 1:
                raise InputError("expected one --model and one --short-side with --frames, got several")
            bars = Progress(
                TextColumn("tracking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                console=Console(stderr=True), refresh_per_second=2,
            )  # fmt: skip
            with bars:
                bar = bars.add_task("", total=request.frames)
                stream = track.long_stream(
                    clip, artifacts[0], rows[0], request.memory_frames, request.frames, threads,
                    lambda done: bars.update(bar, completed=done), request.backend,
                )  # fmt: skip
            console.print(
                f"{stream.frames} frames at {rows[0]} rows: memory {stream.resident_early / 2**20:.1f} MB at frame"
                f" {track.SETTLED}, {stream.resident_late / 2**20:.1f} MB at the end ({stream.growth / 2**20:+.1f});"
                f" {stream.seconds_early * 1e3:.1f} ms a frame, then {stream.seconds_late * 1e3:.1f}"
                f" ({100 * stream.slowdown:+.1f} %)",
                highlight=False,
            )
            content = {"stream": {**asdict(stream), "rows": rows[0]}}
        else:
            with Console(stderr=True).status("") as status:
                found = track.compare(
                    clip, artifacts, rows, request.memory_frames, request.rounds, request.timed, threads, request.peer,
                    status.update, request.backend,
                )  # fmt: skip
            height, width = request.size
            title = f"one object, {height}x{width}, {request.memory_frames + 1} references, video file to mask files"
            table_rows = [
                [
                    tracked.name,
                    str(tracked.short_side),
                    f"{tracked.frames_per_second:.2f}",
                    f"{tracked.timing.median * 1e3:.1f}",
                    f"{100 * tracked.timing.spread:.0f} %",
                    "-" if (ratio := track.against_peer(tracked, found)) is None else f"{ratio:.1f}",
                    f"{100 * tracked.agreement:.1f} %",
                ]
                for tracked in found
            ]
            console.print(f"{about['processor']}, {threads} threads", highlight=False)
            columns = ("tracker", "rows", "frames/s", "ms", "±", "x plain", "same pixels")
            console.print(_table(title, columns, table_rows))
            content = {
                "track": track.description(found),
                "size": list(request.size),
                "references": request.memory_frames + 1,
            }
    if request.json is not None:
        write_json(request.json, {"environment": about, **content})


def _clip(video: Path, init: Path, size: tuple[int, int]):
    from corrflow.bench.track import Clip
    from corrflow.runtime.formats.mask_png import read_mask_objects

    if not video.is_file():
        raise InputError(f"expected a video file, got {video}; check the path")
    mask = next(iter(read_mask_objects([init]))).mask
    resized = cv2.resize(mask.astype("uint8"), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return Clip(video, size, resized)


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def run_train(
    presets: Sequence[str], precisions: Sequence[str], batch: int, crop: int, rounds: int, data: Path | None,
    threads: int, device: str, json: Path | None,
) -> None:  # fmt: skip
    """corrflow-bench train. Raises InputError for unknown presets, precisions and devices, for a GPU that is not there
    or is to draw clips, and for a folder without videos."""
    from corrflow.bench import train
    from corrflow.train.config import TrainConfig
    from corrflow.train.distributed import init_distributed

    check_output(json)
    if device not in ("cpu", "cuda"):
        raise InputError(f"expected --device cpu or cuda, got {device!r}")
    if device == "cuda" and data is not None:
        raise InputError("expected --data or --device cuda, got both: clips are drawn on the CPU; measure them apart")
    with init_distributed(device) as processes:
        place = processes.device
    threads = threads or available_threads()
    about, console = environment(threads), wide_console()
    results = []
    with Console(stderr=True).status("") as status, tempfile.TemporaryDirectory() as cache:
        for name in presets:
            for precision in precisions:
                config = TrainConfig(batch=batch, crop=crop, precision=precision, threads=threads)

                def report(part: str, title: str = f"{name}, {precision}") -> None:
                    status.update(f"{title}: {part}")

                if place.type == "cuda":
                    results.append(train.measure_on_gpu(name, precision, config, rounds, place, report))
                else:
                    results.append(train.measure(name, precision, config, rounds, data, Path(cache), report))
    if place.type == "cuda":
        import torch

        about["processor"] = torch.cuda.get_device_name(place)
    console.print(
        f"{about['processor']}, {threads} threads, {batch} clips of 3 frames of {crop}x{crop}", highlight=False
    )
    for result in results:
        rows = [
            [part, f"{timing.median * 1e3:.1f}", f"{100 * timing.spread:.0f} %", f"{100 * result.share(part):.0f} %"]
            for part, timing in result.timings.items()
        ]
        title = f"{result.preset}, {result.precision}: {1 / result.timings[train.STEP].median:.2f} steps/s"
        console.print(_table(title, ("part", "ms", "±", "of the step"), rows))
        ours, unfold = (result.frames_per_second(step) for step in (train.STEP, train.UNFOLD))
        memories = [
            "-" if size is None else f"{size / 2**20:.0f} MB"
            for size in (result.memory[train.STEP], result.memory[train.UNFOLD])
        ]
        console.print(
            f"{ours:.1f} frames/s and {memories[0]}; with unfold in float32 {unfold:.1f} frames/s and {memories[1]}:"
            f" {ours / unfold:.1f} times as fast",
            highlight=False,
        )
        if result.ceiling is not None:
            console.print(f"with the fused kernel for the op's forward pass alone: {result.ceiling:.2f} times as fast")
    if json is not None:
        write_json(json, {"environment": about, "train": [train.description(result) for result in results]})
