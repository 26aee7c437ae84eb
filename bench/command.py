"""Commands of corrflow-bench: tables, progress and JSON files around the measurements."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import cv2
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from corrflow.bench.options import KernelOptions, OpOptions, TrackOptions, TrainOptions, parse_size
from corrflow.bench.report import check_output, environment, wide_console, write_json
from corrflow.errors import CorrflowError, InputError
from corrflow.plugins.local_soft_copy.cpu import available_threads

DEMO_FRAMES = 60


def run_op(options: OpOptions) -> None:
    """Time the forms of the op. Raises InputError if no form matches."""
    _needs_torch()
    from corrflow.bench.op import benchmark
    from corrflow.bench.op.forms import Case

    check_output(options.json)
    threads = options.threads or available_threads()
    machine, console = environment(threads), wide_console()
    rows, columns = parse_size("--cells", options.cells)
    cases = [
        Case(rows, columns, options.channels, options.classes, options.references, radius, top_k)
        for radius, top_k in options.windows()
    ]
    with Console(stderr=True).status("") as status:
        results = benchmark.run_cases(cases, options.form or [], options.rounds, threads, options.memory, status.update)
    console.print(f"{machine['processor']}, {threads} threads", highlight=False)
    for result in results:
        console.print(_table(result.case.title, benchmark.TABLE_COLUMNS, benchmark.table_rows(result)))
        for name, form in result.forms.items():
            if form.skipped:
                console.print(f"{name}: {form.skipped}", highlight=False)
        rates = ", ".join(f"{rate / 1e9:.0f} ({name})" for name, rate in result.matmul_rates.items())
        console.print(f"fp32 matrix product, GFLOP/s: {rates}; copy {result.copy_rate / 1e9:.1f} GB/s", highlight=False)
    if options.json is not None:
        content = [benchmark.description(result) for result in results]
        write_json(options.json, {"environment": machine, "op": content})


def run_kernel(options: KernelOptions) -> None:
    """Compare and time the CUDA kernel. Raises InputError without a GPU, CorrflowError if its results are wrong."""
    from corrflow.bench.op import cuda_kernel as kernel

    check_output(options.json)
    gpu, console = kernel.OnGpu(), wide_console()
    console.print(f"{gpu.device.gpu}, compute capability {gpu.device.compute_capability}", highlight=False)
    wrong, agreements = [], []
    table = Table("case", "dtype", "largest", "beyond", title="CUDA kernel compared with the CPU")
    for name, case in (kernel.CASES | kernel.INDEXED_CASES | kernel.TIMED).items():
        for dtype in kernel.DTYPES:
            for ties in (False, True):
                title = f"{name}{', ties' if ties else ''}"
                agreement = kernel.compare(gpu, case, dtype, ties)
                table.add_row(title, dtype, f"{agreement.largest:.1e}", f"{agreement.beyond:.2%}")
                agreements.append({"case": title, "dtype": dtype, **asdict(agreement), "holds": agreement.holds})
                if not agreement.holds:
                    wrong.append(f"{title} in {dtype}")
    console.print(table)
    times = []
    for name, case in kernel.TIMED.items():
        for dtype in kernel.DTYPES:
            tensors = kernel.tensors_of(case, dtype, ties=False)
            milliseconds = gpu.milliseconds(case, dtype, tensors, options.runs)
            times.append({"case": name, "dtype": dtype, "ms": milliseconds})
            console.print(f"{milliseconds:.3f} ms per launch: {name}, {dtype}", highlight=False)
    gpu.device.close()
    if options.json is not None:
        write_json(options.json, {"gpu": gpu.device.gpu, "agreement": agreements, "times": times})
    if wrong:
        raise CorrflowError(
            f"expected the results of the CPU on the GPU, got others in {len(wrong)} cases, the first being {wrong[0]}"
        )


def run_track(options: TrackOptions) -> None:
    """Time tracking, or measure a long stream. Raises InputError for wrong files before anything is timed."""
    if options.peer and not options.frames:
        _needs_torch()
    from corrflow.bench import track
    from corrflow.bench.clips import write_demo
    from corrflow.bench.track import Clip

    check_output(options.json, options.video, options.init)
    threads = options.threads or available_threads()
    cv2.setNumThreads(threads)
    machine, console = environment(threads), wide_console()
    models = list(options.model or ["quarter"])
    size = height, width = parse_size("--size", options.size)
    with tempfile.TemporaryDirectory() as folder:
        if options.video is None:
            path, mask = write_demo(Path(folder), size, DEMO_FRAMES)
            clip = Clip(path, size, mask)
        else:
            assert options.init is not None, "TrackOptions checks that VIDEO comes with --init"
            clip = _clip(options.video, options.init, size)
        setup = track.Setup(clip, options.memory_frames, options.backend, threads)
        if options.frames:
            (short_side,) = options.short_sides
            progress = Progress(
                TextColumn("tracking"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn(),
                console=Console(stderr=True), refresh_per_second=2,
            )  # fmt: skip
            with progress:
                task = progress.add_task("", total=options.frames)
                stream = track.long_stream(
                    setup, models[0], short_side, options.frames, lambda done: progress.update(task, completed=done)
                )
            console.print(
                f"{stream.frames} frames at short side {short_side}: memory {stream.resident_early / 2**20:.1f} MB at"
                f" frame {track.SETTLED}, {stream.resident_late / 2**20:.1f} MB at the end"
                f" ({stream.growth / 2**20:+.1f}); {stream.seconds_early * 1e3:.1f} ms per frame, then"
                f" {stream.seconds_late * 1e3:.1f} ({100 * stream.slowdown:+.1f} %)",
                highlight=False,
            )
            content = {"stream": {**asdict(stream), "short_side": short_side}}
        else:
            with Console(stderr=True).status("") as status:
                results = track.compare(
                    setup, models, options.short_sides, options.rounds, options.timed, options.peer, status.update
                )
            rows = [
                [
                    result.name,
                    str(result.short_side),
                    f"{result.frames_per_second:.2f}",
                    f"{result.timing.median * 1e3:.1f}",
                    f"{100 * result.timing.spread:.0f} %",
                    "-" if (ratio := track.against_peer(result, results)) is None else f"{ratio:.1f}",
                    f"{100 * result.agreement:.1f} %",
                ]
                for result in results
            ]
            console.print(f"{machine['processor']}, {threads} threads", highlight=False)
            references = options.memory_frames + 1
            title = f"one object, {height}x{width}, {references} reference frames, video file to mask files"
            columns = ("tracker", "short side", "frames/s", "ms", "±", "x plain", "same pixels")
            console.print(_table(title, columns, rows))
            content = {"track": track.description(results), "size": list(size), "references": references}
    if options.json is not None:
        write_json(options.json, {"environment": machine, **content})


def _clip(video: Path, init: Path, size: tuple[int, int]):
    from corrflow.bench.track import Clip
    from corrflow.runtime.formats.mask_png import read_mask_objects

    if not video.is_file():
        raise InputError(f"expected a video file, got {video}; check the path")
    mask = next(iter(read_mask_objects([init]))).mask
    resized = cv2.resize(mask.astype("uint8"), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    return Clip(video, size, resized)


def run_train(options: TrainOptions) -> None:
    """Time a training step. Raises InputError for unknown presets and precisions, or a missing GPU."""
    _needs_torch()
    from corrflow.bench import train
    from corrflow.train.config import TrainConfig
    from corrflow.train.distributed import init_distributed

    check_output(options.json, options.data)
    with init_distributed(options.device) as context:
        device = context.device
    threads = options.threads or available_threads()
    machine, console = environment(threads), wide_console()
    results = []
    with Console(stderr=True).status("") as status, tempfile.TemporaryDirectory() as cache:
        for name in options.preset or ["quarter"]:
            for precision in options.precision or ["float32"]:
                config = TrainConfig(batch=options.batch, crop=options.crop, precision=precision, threads=threads)

                def report(part: str, title: str = f"{name}, {precision}") -> None:
                    status.update(f"{title}: {part}")

                if device.type == "cuda":
                    results.append(train.measure_on_gpu(name, precision, config, options.rounds, device, report))
                else:
                    results.append(
                        train.measure(name, precision, config, options.rounds, options.data, Path(cache), report)
                    )
    if device.type == "cuda":
        import torch

        machine["processor"] = torch.cuda.get_device_name(device)
    crop = options.crop
    console.print(
        f"{machine['processor']}, {threads} threads, {options.batch} clips of 3 frames of {crop}x{crop}",
        highlight=False,
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
            console.print(f"with the fused kernel for the op's forward pass: {result.ceiling:.2f} times as fast")
    if options.json is not None:
        write_json(options.json, {"environment": machine, "train": [train.description(each) for each in results]})


def _needs_torch() -> None:
    """Raise InputError without PyTorch."""
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"expected {error.name} for this benchmark, found none; pip install 'corrflow[export]'"
        ) from error


def _table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(title=title, title_justify="left")
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table
