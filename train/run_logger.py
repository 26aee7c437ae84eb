"""What a run leaves behind for people: its log, events for TensorBoard, and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np

from corrflow.train.config import TrainConfig
from corrflow.train.curves import draw_log

LOG_NAME = "log.jsonl"


class RunLogger:
    """The records of a run in its folder, from `first_step` on; what a killed run wrote after that is dropped."""

    def __init__(self, run: Path, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.config = run, config
        self._log = _log_up_to(run / LOG_NAME, first_step).open("a")
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)

    def __enter__(self) -> RunLogger:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self._writer.close()
        draw_log(self.run / LOG_NAME, self.run / "curves.png")

    def add(self, step: int, forward: float, cycle: float, seconds: float) -> None:
        """The losses of the step that ended as number `step`."""
        line = {"step": step, "forward": forward, "cycle": cycle, "seconds": round(seconds, 3)}
        self._log.write(json.dumps(line) + "\n")
        self._writer.add_scalar("loss/forward", forward, step)
        self._writer.add_scalar("loss/cycle", cycle, step)
        self._writer.add_scalar("schedule/learning_rate", self.config.learning_rate_at(step - 1), step)
        self._writer.add_scalar("schedule/truth_probability", self.config.truth_probability_at(step - 1), step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture [H, W, 3] uint8, RGB, as `<name>/<step>.png` and in TensorBoard."""
        self._writer.add_image(name, picture, step, dataformats="HWC")
        folder = self.run / name
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{step:07d}.png"), picture[..., ::-1])

    def flush(self) -> None:
        self._log.flush()


def _log_up_to(path: Path, step: int) -> Path:
    """Drop what a killed run logged after its last checkpoint, so that no step stands in the log twice."""
    if path.is_file():
        kept = []
        for line in path.read_text().splitlines():
            try:
                if json.loads(line)["step"] <= step:
                    kept.append(line)
            except (ValueError, KeyError):
                break  # the line being written at the kill
        path.write_text("".join(f"{line}\n" for line in kept))
    return path
