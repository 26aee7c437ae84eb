"""corrflow-bench: how fast the op, tracking and training are here, beside their peers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from corrflow.plugins.errors import InputError, errors_reported

app = typer.Typer(
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)

Json = Annotated[Path | None, typer.Option("--json", help="Also write every number to this file.")]
Threads = Annotated[int, typer.Option(min=0, help="CPU threads; 0: all.")]


@app.callback(
    help="""Measure speed and memory beside peers in the same run.

    \b
    Examples:
      corrflow-bench op
      corrflow-bench op --case 12:10 --form fused --form blocked --json op.json
    """
)
def bench() -> None: ...


@app.command()
def op(
    case: Annotated[
        list[str] | None, typer.Option(help="Window radius, or RADIUS:TOP_K; repeat for several. [6 and 12:10]")
    ] = None,
    cells: Annotated[str, typer.Option(help="Rows x columns of cells.")] = "120x214",
    channels: Annotated[int, typer.Option(min=1, help="Feature channels, C.")] = 64,
    classes: Annotated[int, typer.Option(min=1, help="Label channels, N.")] = 8,
    references: Annotated[int, typer.Option(min=1, help="Reference frames, K.")] = 1,
    form: Annotated[
        list[str] | None, typer.Option(help="Only forms whose names contain this; repeat for several.")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns that every form gets.")] = 7,
    memory: Annotated[bool, typer.Option(help="Measure extra memory, each form in a process of its own.")] = True,
    threads: Threads = 0,
    json: Json = None,
) -> None:
    """Time every form of LocalSoftCopy on one input: unfold, dense attention, tiles, ONNX, the fused kernels.

    A row shows the median, half the distance between the quartiles, speed against unfold and torch_blocked, arithmetic
    as a share of this machine's fp32 matrix product, the memory a call adds, and how far it is from torch_blocked.
    """
    with errors_reported():
        rows, columns = _sizes(cells, "--cells as rows x columns, such as 120x214")
        windows = [_window(text) for text in case or ["6", "12:10"]]
        _needs_torch()
        from rich.console import Console
        from rich.table import Table

        from corrflow.bench import op as benchmark
        from corrflow.bench.op_forms import Case
        from corrflow.bench.report import check_output, environment, wide_console, write_json
        from corrflow.plugins.local_soft_copy.cpu import available_threads

        check_output(json)
        threads = threads or available_threads()
        about, console = environment(threads), wide_console()
        cases = [Case(rows, columns, channels, classes, references, *window) for window in windows]
        with Console(stderr=True).status("") as status:
            results = benchmark.run_cases(cases, form or [], rounds, threads, memory, status.update)
        console.print(f"{about['processor']}, {threads} threads", highlight=False)
        for result in results:
            table = Table(title=result.case.title, title_justify="left")
            for index, name in enumerate(benchmark.TABLE_COLUMNS):
                table.add_column(name, justify="right" if index else "left", no_wrap=True)
            for cells_of_row in benchmark.table_rows(result):
                table.add_row(*cells_of_row)
            console.print(table)
            for name, found in result.forms.items():
                if found.skipped:
                    console.print(f"{name}: {found.skipped}", highlight=False)
            console.print(
                f"fp32 matrix product {result.product_rate / 1e9:.0f} GFLOP/s, copy {result.copy_rate / 1e9:.1f} GB/s",
                highlight=False,
            )
        if json is not None:
            write_json(json, {"environment": about, "op": [benchmark.description(result) for result in results]})


def _sizes(text: str, expected: str) -> tuple[int, int]:
    """ "120x214" -> (120, 214); raises InputError."""
    parts = text.lower().split("x")
    if len(parts) != 2 or not all(part.isdecimal() and 1 <= int(part) <= 8192 for part in parts):
        raise InputError(f"expected {expected}, got {text!r}")
    return int(parts[0]), int(parts[1])


def _window(text: str) -> tuple[int, int]:
    """ "12:10" -> (12, 10), "6" -> (6, 0); raises InputError."""
    radius, _, top_k = text.partition(":")
    if not radius.isdecimal() or not (top_k or "0").isdecimal():
        raise InputError(f"expected --case as RADIUS or RADIUS:TOP_K, such as 6 or 12:10, got {text!r}")
    return int(radius), int(top_k or 0)


def _needs_torch() -> None:
    try:
        import torch  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"the peers of this benchmark need {error.name}, which is not installed: pip install 'corrflow[export]'"
        ) from error


def main() -> None:
    """Entry point of the console command."""
    app()


if __name__ == "__main__":
    main()
