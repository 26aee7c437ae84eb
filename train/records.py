"""What a run leaves behind for people: its log, events for TensorBoard, and pictures."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from corrflow.train.config import TrainConfig

LOG_NAME = "log.jsonl"


class Records:
    """The records of a run in its folder, from `first_step` on; what a killed run wrote after that is dropped."""

    def __init__(self, run: Path, config: TrainConfig, first_step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run, self.config = run, config
        self._log = _log_up_to(run / LOG_NAME, first_step).open("a")
        self._writer = SummaryWriter(str(run / "tensorboard"), purge_step=first_step)

    def __enter__(self) -> Records:
        return self

    def __exit__(self, *_: object) -> None:
        self._log.close()
        self._writer.close()

    def add(self, step: int, forward: float, cycle: float, seconds: float) -> None:
        """The losses of the step that ended as number `step`."""
        line = {"step": step, "forward": forward, "cycle": cycle, "seconds": round(seconds, 3)}
        self._log.write(json.dumps(line) + "\n")
        self._writer.add_scalar("loss/forward", forward, step)
        self._writer.add_scalar("loss/cycle", cycle, step)
        self._writer.add_scalar("schedule/learning_rate", self.config.learning_rate_at(step - 1), step)
        self._writer.add_scalar("schedule/truth_probability", self.config.truth_probability_at(step - 1), step)

    def picture(self, step: int, name: str, picture: np.ndarray) -> None:
        """A picture [H, W, 3] uint8, RGB, as `<name>s/<step>.jpg` and in TensorBoard."""
        self._writer.add_image(name, picture, step, dataformats="HWC")
        folder = self.run / f"{name}s"
        folder.mkdir(exist_ok=True)
        cv2.imwrite(str(folder / f"{step:07d}.jpg"), picture[..., ::-1])

    def flush(self) -> None:
        self._log.flush()


def reconstruction_picture(clips: np.ndarray, lab: Tensor, copied: Tensor, codebook: Tensor) -> np.ndarray:
    """For up to four clips, one row each: frame 0, the true last frame, and the last frame in copied colours.

    Returns [rows * S, 3 * S, 3] uint8, RGB. Where the classes have no lightness, it is the true one that is shown.
    """
    rows = []
    for clip in range(min(4, len(copied))):
        colours = torch.einsum("khw,kc->chw", copied[clip, -1].detach(), codebook)
        colours = torch.nn.functional.interpolate(colours[None], size=lab.shape[-2:], mode="bilinear")[0]
        recoloured = torch.cat([lab[clip, -1, : 3 - len(colours)], colours]).permute(1, 2, 0).contiguous().cpu().numpy()
        rgb = cv2.cvtColor(recoloured.astype(np.float32), cv2.COLOR_Lab2RGB)
        shown = (rgb.clip(0, 1) * 255).round().astype(np.uint8)
        rows.append(np.concatenate([clips[clip, 0], clips[clip, -1], shown], 1))
    return np.concatenate(rows, 0)


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
