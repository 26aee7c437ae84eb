"""Times the forms of LocalSoftCopy beside each other: python -m corrflow.plugins.local_soft_copy.benchmark

Figures are medians; the ratio to the unfold form in the same run is what says something on a shared machine.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from statistics import median

import torch
from torch import Tensor

from corrflow.plugins.local_soft_copy import torch_blocked, torch_reference
from corrflow.plugins.local_soft_copy.spec import Attributes


def main() -> None:
    """Print one line a form: median, fastest, slowest, and how much faster than unfold."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--columns", type=int, default=214)
    parser.add_argument("--channels", type=int, default=64)
    parser.add_argument("--classes", type=int, default=8)
    parser.add_argument("--radius", type=int, default=6)
    parser.add_argument("--top-k", type=int, default=0)
    parser.add_argument("--runs", type=int, default=7)
    options = parser.parse_args()

    torch.manual_seed(0)
    query = torch.randn(1, options.channels, options.rows, options.columns)
    keys = torch.randn(1, 1, options.channels, options.rows, options.columns)
    values = torch.rand(1, 1, options.classes, options.rows, options.columns)
    attributes = Attributes((options.radius,), top_k=options.top_k)
    forms: dict[str, Callable[[Tensor, Tensor, Tensor, Attributes], Tensor]] = {
        "torch_reference (unfold)": torch_reference.local_soft_copy,
        "torch_blocked": torch_blocked.local_soft_copy,
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    with torch.no_grad():
        for run in range(options.runs + 1):
            for name, form in forms.items():  # in turn, so that a change of the machine's pace meets both
                start = time.perf_counter()
                form(query, keys, values, attributes)
                if run:  # the first warms up
                    seconds[name].append(time.perf_counter() - start)
    slowest = median(seconds["torch_reference (unfold)"])
    print(f"{options.rows}x{options.columns} cells, {options.channels} channels, {options.classes} classes,"
          f" radius {options.radius}, top_k {options.top_k}, {torch.get_num_threads()} threads")  # fmt: skip
    for name, times in seconds.items():
        print(
            f"{name:26} median {median(times) * 1e3:8.1f} ms  ({min(times) * 1e3:.1f} to {max(times) * 1e3:.1f})"
            f"  {slowest / median(times):5.1f} times as fast as unfold"
        )


if __name__ == "__main__":
    main()
