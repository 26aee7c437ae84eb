"""The memory of a training step, measured in a process of its own: python -m corrflow.bench.step_memory

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

# The op that a step copies with: ours, and the same written out with unfold.
FORMS = {"tiles": torch_blocked.local_soft_copy, "unfold": torch_reference.local_soft_copy}


def training_step(
    form: str, preset_name: str, config: TrainConfig, device: torch.device | None = None
) -> Callable[[], object]:
    """A call that does one optimiser step on clips of noise, its copies computed by this form of the op.

    device: the CPU, or a GPU, which is waited for
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
    """Bytes by which a first step raises a process's memory at its highest; None where no system says."""
    request = {"form": form, "preset": preset_name, "config": asdict(config)}
    return answer_of(__name__, request, f"measuring the memory of a step with {form} failed")


def step_memory_on_gpu(step: Callable[[], object], device: torch.device) -> int:
    """Bytes of the GPU's memory by which a step raises what is allocated, at its highest."""
    step()  # what is allocated once and stays, such as the optimiser's state
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    step()
    return torch.cuda.max_memory_allocated(device) - before


def main() -> None:
    """The measuring process."""
    request = json.load(sys.stdin)
    form, name, config = request["form"], request["preset"], TrainConfig(**request["config"])
    torch.set_num_threads(config.threads)
    # A small step first: libraries allocate for themselves when they are first used.
    training_step(form, name, replace(config, batch=config.accumulate, crop=32))()
    print(json.dumps(peak_growth(training_step(form, name, config))))


if __name__ == "__main__":
    main()
