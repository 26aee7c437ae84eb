"""Memory of a training step, measured in a separate process: python -m corrflow.bench.step_memory

Reads {"form", "preset", "config"} as JSON from standard input and prints the bytes, or null.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from unittest.mock import patch

import numpy as np
import torch

from corrflow.bench.machine import answer_of, peak_growth
from corrflow.plugins.local_soft_copy import torch_blocked, torch_reference
from corrflow.train import losses
from corrflow.train.config import TrainConfig, preset
from corrflow.train.distributed import DistributedContext
from corrflow.train.trainer import Trainer

# Form of the op in a step: tiles, or unfold.
FORMS = {"tiles": torch_blocked.local_soft_copy, "unfold": torch_reference.local_soft_copy}


def training_step(
    form: str, preset_name: str, config: TrainConfig, device: torch.device | None = None
) -> Callable[[], object]:
    """Return a call that runs one optimiser step on clips of noise with this form of the op.

    device: None for the CPU; a call waits for a GPU
    """
    context = DistributedContext(device=device or torch.device("cpu"))
    generator = np.random.default_rng(0)
    colours = torch.from_numpy(generator.uniform(-40, 80, (config.colours, 3 if config.lightness else 2)))
    trainer = Trainer.create(preset(preset_name), config, colours.float(), context)
    clips = generator.integers(0, 256, (config.batch, config.frames, config.crop, config.crop, 3), np.uint8)

    def step() -> object:
        with patch.object(losses, "local_soft_copy", FORMS[form]):
            result = trainer.step(clips, 0)
        if context.device.type == "cuda":
            torch.cuda.synchronize(context.device)
        return result

    return step


def step_memory(form: str, preset_name: str, config: TrainConfig) -> int | None:
    """Return the bytes by which a first step raises the peak memory of a process; None if unknown."""
    request = {"form": form, "preset": preset_name, "config": asdict(config)}
    return answer_of(__name__, request, f"measuring the memory of a step with {form} failed")


def step_memory_on_gpu(step: Callable[[], object], device: torch.device) -> int:
    """Return the bytes by which a step raises the peak allocation of a GPU."""
    step()  # permanent allocations, such as the optimiser's state
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def main() -> None:
    """Measure in this process."""
    request = json.load(sys.stdin)
    form, name, config = request["form"], request["preset"], TrainConfig(**request["config"])
    torch.set_num_threads(config.threads)
    # A small step first, because libraries allocate memory on first use.
    training_step(form, name, replace(config, batch=config.accumulate, crop=32))()
    print(json.dumps(peak_growth(training_step(form, name, config))))


if __name__ == "__main__":
    main()
