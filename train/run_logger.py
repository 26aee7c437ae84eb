"""Training logs: JSON lines, TensorBoard events, images and a plot of the losses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from corrflow.train.config import TrainConfig
from corrflow.train.curves import plot_log

LOG_NAME = "log.jsonl"


class RunLogger:
    """Logs in the folder of a run, from `first_step` on; later steps of a killed run are removed."""

    def __init__(self, run: Path, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.config = run, config
        self._log = _truncate_log(run / LOG_NAME, first_step).open("a", buffering=1)  # a line is there after its step
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self._writer.close()
        plot_log(self.run / LOG_NAME, self.run / "curves.png")

    def add_losses(self, step: int, losses: dict[str, float], seconds: float) -> None:
        """Log the losses by name and the duration of a step; `step` counts completed steps."""
        self._log.write(json.dumps({"step": step, **losses, "seconds": round(seconds, 3)}) + "\n")
        for name, value in losses.items():
            self._writer.add_scalar(f"loss/{name}", value, step)
        self._writer.add_scalar("schedule/learning_rate", self.config.learning_rate_at(step - 1), step)
        if self.config.uses_clips:
            self._writer.add_scalar("schedule/teacher_forcing", self.config.teacher_forcing_at(step - 1), step)
        if self.config.has_target_network:
            self._writer.add_scalar("schedule/momentum", self.config.momentum_at(step - 1), step)

    def add_image(self, step: int, name: str, image: np.ndarray) -> None:
        """Log an image [H, W, 3] uint8, RGB, as `<name>/<step>.png` and in TensorBoard."""
        self._writer.add_image(name, image, step, dataformats="HWC")
        folder = self.run / name
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{step:07d}.png"), image[..., ::-1])


def _truncate_log(path: Path, step: int) -> Path:
    """Remove log lines after `step`, so that a resumed run logs no step twice; return the path."""
    if path.is_file():
        lines = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    lines.append(line)
            except (ValueError, KeyError):
                break  # an incomplete line of a killed run
        path.write_text("".join(f"{line}\n" for line in lines))
    return path
