"""Memory that a call of a form adds, measured in a separate process: python -m corrflow.bench.op.extra_memory

Reads {"form", "threads", "case"} as JSON from standard input and prints the bytes, or null.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict

from corrflow.bench.machine import answer_of, peak_growth
from corrflow.bench.op.forms import Case, forms


def extra_memory(form: str, case: Case, threads: int) -> int | None:
    """Return the bytes by which a first call raises the memory of a process, result included; None if unknown."""
    request = {"form": form, "threads": threads, "case": asdict(case)}
    return answer_of(__name__, request, f"measuring the memory of {form} failed")


def main() -> None:
    """Measure in this process."""
    import torch

    request = json.load(sys.stdin)
    prepare, case, threads = forms()[request["form"]], Case(**request["case"]), request["threads"]
    torch.set_num_threads(threads)
    # A small call first, because libraries allocate memory on first use.
    prepare(Case(16, 16, case.channels, case.classes, case.references, 1, min(case.top_k, 4)), threads)()
    print(json.dumps(peak_growth(prepare(case, threads))))


if __name__ == "__main__":
    main()
