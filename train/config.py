"""Configuration of a training run: two frozen dataclasses that every checkpoint stores.

Names and numbers are the paper's (sections 3.2 to 3.5 and 4) unless a field says otherwise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from corrflow.errors import InputError


@dataclass(frozen=True)
class ModelConfig:
    """Shape of the encoder.

    widths:           channels of the four stages (paper, appendix A)
    feature_channels: channels of the features
    unit_norm:        unit-length features; the paper's raw dot products are False with temperature 1
    colour_share:     weight of raw colours in a similarity, 0 or more and below 1 (not in the paper; needs unit_norm)
    coarse_share:     weight of half-scale features among the learned features, 0 to 1 (not in the paper; needs
                      unit_norm)
    stride:           pixels between learned features, 4 or 8; those of stride 8 are interpolated to cells of 4 pixels
                      (not in the paper; needs unit_norm)
    feature_norm:     batch normalisation of the features before they get unit length (not in the paper). The
                      pixel-level objective leaves their mean free, and a large mean makes all features alike
    """

    widths: tuple[int, int, int, int] = (64, 128, 256, 256)
    feature_channels: int = 64
    unit_norm: bool = True
    colour_share: float = 0.0
    coarse_share: float = 0.0
    stride: int = 4
    feature_norm: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.colour_share < 1 or (self.colour_share and not self.unit_norm):
            raise InputError(
                f"expected a colour share from 0 to below 1, and 0 for features that are not of unit length, got"
                f" {self.colour_share} with unit_norm {self.unit_norm}"
            )
        if not 0 <= self.coarse_share <= 1 or (self.coarse_share and not self.unit_norm):
            raise InputError(
                f"expected a coarse share from 0 to 1, and 0 for features that are not of unit length, got"
                f" {self.coarse_share} with unit_norm {self.unit_norm}"
            )
        if self.stride not in (4, 8) or (self.stride == 8 and not self.unit_norm):
            raise InputError(
                f"expected a stride of 4 or 8, and 4 for features that are not of unit length, got {self.stride} with"
                f" unit_norm {self.unit_norm}"
            )


PRESETS: dict[str, ModelConfig] = {
    "full": ModelConfig(),
    "half": ModelConfig(widths=(32, 64, 128, 128)),
    "quarter": ModelConfig(widths=(16, 32, 64, 64)),
    "paper": ModelConfig(unit_norm=False),
    "colorization": ModelConfig(unit_norm=False),
}

# Training settings of the presets that differ from the defaults. The baseline `colorization` (Vondrick et al., 2018)
# copies (a, b) colours between pairs of grey frames and searches whole frames.
PRESET_TRAINING: dict[str, dict[str, Any]] = {
    "paper": {"temperature": 1.0, "lightness": False},
    "colorization": {
        "temperature": 1.0,
        "lightness": False,
        "frames": 2,
        "radius": 0,
        "grey_input": True,
        "cycle_weight": 0.0,
    },
}

OBJECTIVES = ("reconstruction", "pixel", "frame", "distil")

# Training settings of runs without reconstruction that differ from the defaults.
SIMILARITY_TRAINING: dict[str, Any] = {"learning_rate": 1e-3}
# Distillation alone compares two frames of a clip: a teacher knows their matches, whatever has moved.
DISTIL_TRAINING: dict[str, Any] = {"pair_gap": 3}

# Ablations of the paper's four ingredients (section 4.3).
ABLATIONS: dict[str, dict[str, Any]] = {
    "no-colour-dropout": {"grey_input": True},
    "full-attention": {"radius": 0},
    "no-scheduled-sampling": {"teacher_forcing_start": 1.0, "teacher_forcing_end": 1.0},
    "no-cycle": {"cycle_weight": 0.0},
}


def preset(name: str) -> ModelConfig:
    """Return the encoder of a preset; raise InputError for an unknown name. See also PRESET_TRAINING."""
    if name not in PRESETS:
        raise InputError(f"expected a preset among {', '.join(PRESETS)}, got {name!r}; choose one of those")
    return PRESETS[name]


@dataclass(frozen=True)
class TrainConfig:
    """Training settings.

    steps:             optimiser steps of the whole run; schedules are fractions of them
    batch:             clips per step
    frames:            frames per clip, n in the paper: n - 1 copies forward and n - 1 back
    frames_per_second: sampling rate of clips
    crop:              side of the square training frames, in pixels
    min_crop_scale:    smallest crop, as a fraction of the short side of a video
    radius:            window radius in cells, M in the paper; 0 searches the whole frame (ablation)
    temperature:       divisor of the similarities; 1 for the paper's raw dot products
    colours:           K-means classes of the copied colours
    lightness:         K-means in Lab, not in its (a, b) plane
    dropout:           probability that colour channels of a clip are zeroed
    grey_input:        grey frames instead of colour dropout (ablation)
    jitter:            largest relative change of brightness, contrast and saturation
    teacher_forcing_start, teacher_forcing_end: probability that a forward step copies true colours, at the start and
                       at the end of the run (scheduled sampling); both are 1 in the ablation
    cycle_weight:      weight of the cycle terms; 0 in the ablation
    learning_rate:     Adam's learning rate at the start
    image_share:       share of clips and of pairs that are made from images, if there are images
    accumulate:        parts of a step's batch, computed one after another; batch normalisation uses the statistics of
                       one part over all processes
    teacher:           digest of the teachers of distillation, or "" for none
    ema_decay:         decay of the moving average of the weights, which is then exported; 0 for no average
    precision:         float32, bfloat16 or float16 (autocast), or float64 for comparisons
    compile:           use torch.compile for the encoder

    Pixel-level objective (Xie et al., 2021, "Propagate Yourself", without propagation, as HVC, Pei et al., 2024):

    objective:         names of OBJECTIVES in their order, separated by commas; losses of several are added
    pairs:             pairs of crops per step, of each of the objectives pixel and frame
    pair_crop:         side of the square crops of a pair, in pixels
    pair_gap:          largest number of frames between the two crops of a clip; 0 takes both from one frame
    min_crop_area:     smallest crop, as a fraction of the image's area
    positive_distance: largest distance of the centres of two matching cells, in diagonals of the larger cell
    momentum:          decay of the target network at the start; rises to 1 over the run along a cosine
    pixel_weight:      weight of the pixel-level loss

    Frame-level objective (VFS, Xu and Wang, 2021), with `pairs`, `pair_crop` and `momentum` of the pixel-level one:

    frame_gap:         largest number of frames between the two frames of a pair
    frame_weight:      weight of the frame-level loss

    Distillation, with `pairs`, `pair_crop`, `pair_gap`, `min_crop_area` and `temperature` of the other objectives:

    relation_weight:   weight of the difference between the matches; the prediction of features has weight 1
    """

    steps: int = 1_000_000
    batch: int = 8
    frames: int = 3
    frames_per_second: float = 6.0
    crop: int = 256
    min_crop_scale: float = 0.7
    radius: int = 6
    temperature: float = 0.07
    colours: int = 16
    lightness: bool = True
    dropout: float = 0.7
    grey_input: bool = False
    jitter: float = 0.1
    teacher_forcing_start: float = 0.9
    teacher_forcing_end: float = 0.6
    cycle_weight: float = 0.1
    learning_rate: float = 2e-4
    image_share: float = 0.3
    seed: int = 0
    precision: str = "float32"
    threads: int = 2
    accumulate: int = 1
    ema_decay: float = 0.0
    teacher: str = ""
    compile: bool = False
    objective: str = "reconstruction"
    pairs: int = 64
    pair_crop: int = 128
    pair_gap: int = 0
    min_crop_area: float = 0.05
    positive_distance: float = 0.1
    momentum: float = 0.99
    pixel_weight: float = 1.0
    frame_gap: int = 8
    frame_weight: float = 1.0
    relation_weight: float = 1.0

    def __post_init__(self) -> None:
        limits = {
            "steps": (1, 10**9), "batch": (1, 4096), "frames": (2, 64), "frames_per_second": (0.1, 240.0),
            "crop": (32, 2048), "min_crop_scale": (0.05, 1.0), "radius": (0, 128), "temperature": (1e-4, 1e4),
            "colours": (2, 313), "dropout": (0.0, 1.0), "jitter": (0.0, 1.0),
            "teacher_forcing_start": (0.0, 1.0), "teacher_forcing_end": (0.0, 1.0),
            "cycle_weight": (0.0, 1e3), "learning_rate": (0.0, 1.0), "image_share": (0.0, 1.0), "threads": (1, 1024),
            "accumulate": (1, 4096), "ema_decay": (0.0, 0.999999), "pairs": (1, 65536), "pair_crop": (32, 2048),
            "pair_gap": (0, 1000), "min_crop_area": (0.001, 1.0), "positive_distance": (0.01, 10.0),
            "momentum": (0.0, 1.0), "pixel_weight": (0.0, 1e3),
            "frame_gap": (0, 1000), "frame_weight": (0.0, 1e3), "relation_weight": (0.0, 1e3),
        }  # fmt: skip
        for name, (low, high) in limits.items():
            if not low <= getattr(self, name) <= high:
                raise InputError(f"expected {name} between {low} and {high}, got {getattr(self, name)}")
        if self.crop % 4:
            raise InputError(f"expected a crop that is a multiple of 4 (the encoder's stride), got {self.crop}")
        if self.pair_crop % 8:
            raise InputError(f"expected a pair_crop that is a multiple of 8 (the largest stride), got {self.pair_crop}")
        objectives_of(self.objective)
        for name, is_used in (("batch", self.uses_clips), ("pairs", self.uses_pairs or self.uses_frame_pairs)):
            if is_used and getattr(self, name) % self.accumulate:
                raise InputError(
                    f"expected {name} to be a multiple of {self.accumulate} (accumulate), got {getattr(self, name)}"
                )
        if self.precision not in ("float32", "bfloat16", "float16", "float64"):
            raise InputError(f"expected precision float32, bfloat16, float16 or float64, got {self.precision!r}")

    @property
    def uses_clips(self) -> bool:
        """True if the objective includes reconstruction."""
        return "reconstruction" in objectives_of(self.objective)

    @property
    def uses_pairs(self) -> bool:
        """True if the objective has pairs of crops: the pixel-level loss or distillation."""
        return self.uses_pixel or self.uses_distillation

    @property
    def uses_pixel(self) -> bool:
        """True if the objective includes the pixel-level loss."""
        return "pixel" in objectives_of(self.objective)

    @property
    def uses_distillation(self) -> bool:
        """True if the objective includes the distillation of teachers."""
        return "distil" in objectives_of(self.objective)

    @property
    def uses_frame_pairs(self) -> bool:
        """True if the objective includes the frame-level loss."""
        return "frame" in objectives_of(self.objective)

    @property
    def has_target_network(self) -> bool:
        """True if the run has a moving average of the encoder as a target network."""
        return self.uses_pixel or self.uses_frame_pairs

    @property
    def frames_needed(self) -> int:
        """Smallest number of frames of a video, for clips and for pairs."""
        return max(
            self.frames if self.uses_clips else 1,
            self.pair_gap + 1 if self.uses_pairs else 1,
            self.frame_gap + 1 if self.uses_frame_pairs else 1,
        )

    def total(self, losses: dict[str, Any]) -> Any:
        """Return the weighted sum of the losses by name; missing losses count as 0."""
        weights = {
            "forward": 1.0, "cycle": self.cycle_weight, "pixel": self.pixel_weight, "frame": self.frame_weight,
            "distil": 1.0, "relation": self.relation_weight,
        }  # fmt: skip
        return sum(weight * losses[name] for name, weight in weights.items() if name in losses)

    def momentum_at(self, step: int) -> float:
        """Return the decay of the target network after a step."""
        return 1 - (1 - self.momentum) * (math.cos(math.pi * min(step / self.steps, 1.0)) + 1) / 2

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step: halved at 40 %, 60 % and 80 % of the run (paper, section 4)."""
        return self.learning_rate * 0.5 ** sum(step >= self.steps * part for part in (0.4, 0.6, 0.8))

    def teacher_forcing_at(self, step: int) -> float:
        """Return the probability of copying true colours, which falls linearly over the run (paper, section 3.4.1)."""
        progress = min(step / max(self.steps - 1, 1), 1.0)
        return self.teacher_forcing_start + (self.teacher_forcing_end - self.teacher_forcing_start) * progress


def objectives_of(text: str) -> tuple[str, ...]:
    """Split names of OBJECTIVES at commas and return them in order; raise InputError for other or repeated names."""
    names = text.split(",")
    if not set(names) <= set(OBJECTIVES) or len(set(names)) < len(names):
        raise InputError(
            f"expected an objective among {', '.join(OBJECTIVES)}, or several such as pixel,frame, got {text!r};"
            " choose from those"
        )
    return tuple(name for name in OBJECTIVES if name in names)


def train_config(preset_name: str, changes: dict[str, Any], ablations: list[str]) -> TrainConfig:
    """Return the training settings of a preset with changed fields and with ablations.

    Raises InputError if an ablation sets a field of `changes`.
    """
    objectives = objectives_of(changes.get("objective", TrainConfig.objective))
    of_objective = {} if "reconstruction" in objectives else SIMILARITY_TRAINING
    if objectives == ("distil",):
        of_objective = of_objective | DISTIL_TRAINING
    # In order, so that "frame,pixel" resumes a run of "pixel,frame".
    settings: dict[str, Any] = PRESET_TRAINING.get(preset_name, {}) | of_objective | changes
    settings = settings | {"objective": ",".join(objectives)}
    for name in ablations:
        conflicts = sorted(set(ABLATIONS[name]) & set(changes))
        if conflicts:
            raise InputError(
                f"expected --{name} or --{conflicts[0].replace('_', '-')}, got both, and the first sets the second"
            )
        settings |= ABLATIONS[name]
    return TrainConfig(**settings)
