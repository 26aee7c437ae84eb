"""corrflow-bench op: all forms of LocalSoftCopy and other implementations, on one input in one run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from corrflow.bench import machine
from corrflow.bench.op.extra_memory import extra_memory
from corrflow.bench.op.forms import BLOCKED, UNFOLD, Call, Case, Unavailable, bytes_needed, forms
from corrflow.bench.timing import Timing, time_in_turn
from corrflow.errors import InputError


@dataclass(frozen=True)
class FormResult:
    """Measurements of one form on one case.

    extra_bytes: memory that a call adds to the process; None if not measured
    difference:  0.999 quantile of the absolute difference from torch_blocked; with top_k, rounding decides between
                 nearly equal scores at the boundary
    skipped:     reason why the form was not measured, or ""
    """

    timing: Timing | None = None
    extra_bytes: int | None = None
    difference: float | None = None
    skipped: str = ""


@dataclass(frozen=True)
class CaseResult:
    """Measurements of one case: forms by name, and upper bounds of the machine at the same time."""

    case: Case
    forms: dict[str, FormResult]
    matmul_rates: dict[str, float]  # operations per second of each library's fp32 matrix product, medians
    copy_rate: float  # bytes per second read and written by a copy, median

    @property
    def matmul_rate(self) -> float:
        """Rate of the fastest library."""
        return max(self.matmul_rates.values())

    def rate_share(self, name: str) -> float:
        """Return the operations per second of a form, relative to the matrix product."""
        timing = self.forms[name].timing
        return float("nan") if timing is None else self.case.operations / timing.median / self.matmul_rate

    def times_faster(self, name: str, peer: str) -> float:
        """Return the speed of a form relative to a peer, by medians; NaN if one was not timed."""
        timing, other = (self.forms[form].timing if form in self.forms else None for form in (name, peer))
        return float("nan") if timing is None or other is None else other.median / timing.median

    def nanoseconds_per_score(self, name: str) -> float:
        """Return the time of a form per window position."""
        timing = self.forms[name].timing
        return float("nan") if timing is None else timing.median / self.case.scores * 1e9


def run_cases(
    cases: Sequence[Case],
    chosen: Sequence[str],
    rounds: int,
    threads: int,
    with_memory: bool,
    report: Callable[[str], None] = lambda message: None,
) -> list[CaseResult]:
    """Measure the forms whose names contain one of `chosen` (empty: all). Raises InputError if no form matches."""
    available = forms()
    names = [name for name in available if not chosen or any(part in name for part in chosen)]
    if not names:
        raise InputError(f"expected --form to match one of {', '.join(available)}, got {', '.join(chosen)}")
    torch.set_num_threads(threads)
    return [_run_case(case, names, rounds, threads, with_memory, report) for case in cases]


def _run_case(
    case: Case, names: list[str], rounds: int, threads: int, with_memory: bool, report: Callable[[str], None]
) -> CaseResult:
    available = forms()
    calls: dict[str, Call] = {}
    skipped: dict[str, str] = {}
    for name in names:
        report(f"{case.title}: preparing {name}")
        try:
            _check_memory(name, case)
            calls[name] = available[name](case, threads)
        except Unavailable as reason:
            skipped[name] = str(reason)
    expected = available[BLOCKED](case, threads)()
    difference = {}
    for name, call in calls.items():
        report(f"{case.title}: comparing {name}")
        difference[name] = float(np.quantile(np.abs(call() - expected), 0.999))
    matmuls = machine.matrix_products()
    bounds = {**matmuls, "copy": machine.memory_copy()}
    timings = time_in_turn({**calls, **bounds}, rounds, report=lambda name: report(f"{case.title}: timing {name}"))
    memory: dict[str, int | None] = {}
    if with_memory:
        for name in calls:
            report(f"{case.title}: memory of {name}")
            memory[name] = extra_memory(name, case, threads)
    return CaseResult(
        case,
        {
            name: FormResult(timings[name], memory.get(name), difference[name])
            if name in calls
            else FormResult(skipped=skipped[name])
            for name in names
        },
        {name: 2 * machine.MATRIX**3 / timings[name].median for name in matmuls},
        2 * machine.COPY_BYTES / timings["copy"].median,
    )


def _check_memory(name: str, case: Case) -> None:
    """Raise Unavailable if a form needs more memory than is free."""
    needed, available = bytes_needed(name, case), machine.available_memory()
    if available is not None and needed > 0.9 * available:
        raise Unavailable(f"needs {needed / 2**30:.1f} GB, {available / 2**30:.1f} are free")


def description(result: CaseResult) -> dict[str, Any]:
    """Return JSON-ready values of all numbers in the table, in seconds and bytes."""
    return {
        "case": result.case.description(),
        "matmul_rates": result.matmul_rates,
        "copy_rate": result.copy_rate,
        "forms": {
            name: {"skipped": form.skipped}
            if form.timing is None
            else {
                "seconds": asdict(form.timing),
                "extra_bytes": form.extra_bytes,
                "difference_from_torch_blocked": form.difference,
                "times_as_fast_as_unfold": _finite(result.times_faster(name, UNFOLD)),
                "times_as_fast_as_torch_blocked": _finite(result.times_faster(name, BLOCKED)),
                "share_of_matmul_rate": result.rate_share(name),
                "nanoseconds_per_score": result.nanoseconds_per_score(name),
            }
            for name, form in result.forms.items()
        },
    }


def table_rows(result: CaseResult) -> list[list[str]]:
    """Return a row of text for each timed form, in the order of TABLE_COLUMNS."""
    rows = []
    for name, form in result.forms.items():
        if form.timing is None:
            continue
        rows.append(
            [
                name,
                f"{form.timing.median * 1e3:.1f}",
                f"{100 * form.timing.spread:.0f} %",
                _times(result.times_faster(name, UNFOLD)),
                _times(result.times_faster(name, BLOCKED)),
                f"{100 * result.rate_share(name):.1f} %",
                f"{result.nanoseconds_per_score(name):.2f}",
                "-" if form.extra_bytes is None else f"{form.extra_bytes / 2**20:.1f}",
                f"{form.difference:.0e}",
            ]
        )
    return rows


TABLE_COLUMNS = ("form", "ms", "±", "x unfold", "x blocked", "of peak", "ns/score", "MB", "differs")


def _times(ratio: float) -> str:
    return "-" if ratio != ratio else f"{ratio:.1f}" if ratio >= 0.95 else f"{ratio:.2f}"


def _finite(ratio: float) -> float | None:
    return None if ratio != ratio else ratio
