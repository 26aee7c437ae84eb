"""Distributed training: ranks, collective operations and batch normalisation over all processes.

`torchrun` starts the processes and sets their ranks in the environment; without it there is one process. Each process
computes an equal share of the batch, so results do not depend on the number of processes.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from corrflow.errors import InputError
from corrflow.train.config import TrainConfig

# One process decodes videos while the others wait. torchrun ends all processes if one fails.
TIMEOUT = timedelta(hours=12)


@dataclass(frozen=True)
class DistributedContext:
    """Place of this process among all processes.

    rank:       index among all `world_size` processes
    local_rank: index among the processes of this machine
    device:     device of the computation
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_main(self) -> bool:
        """True in the one process that writes files."""
        return self.rank == 0

    def clip_numbers(self, step: int, batch: int, accumulate: int) -> list[int]:
        """Return the numbers of this process's clips in a step, one part of the accumulation after another.

        Clip n is the same for any number of processes. Raises InputError if the clips cannot be divided equally.
        """
        if batch % (accumulate * self.world_size):
            raise InputError(
                f"expected a batch that is a multiple of --accumulate times the processes ({accumulate} x"
                f" {self.world_size}), got {batch}; change --batch (clips) or --pairs"
            )
        part_size = batch // accumulate
        share = part_size // self.world_size
        starts = [step * batch + part * part_size + self.rank * share for part in range(accumulate)]
        return [start + clip for start in starts for clip in range(share)]

    def check(self, config: TrainConfig) -> None:
        """Raise InputError if the clips or the pairs of a step cannot be divided equally."""
        for is_used, batch in (
            (config.uses_clips, config.batch),
            (config.uses_pairs or config.uses_frame_pairs, config.pairs),
        ):
            if is_used:
                self.clip_numbers(0, batch, config.accumulate)

    def mean(self, values: list[float]) -> list[float]:
        """Return the mean of each value over all processes."""
        if self.world_size == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return (total / self.world_size).tolist()

    def broadcast(self, tensor: Tensor) -> Tensor:
        """Return the main process's tensor in every process; shapes and types must agree."""
        if self.world_size == 1:
            return tensor
        shared = tensor.to(self.device)
        dist.broadcast(shared, 0)
        return shared.to(tensor.device)

    def barrier(self) -> None:
        """Wait until every process has called this method."""
        if self.world_size > 1:
            dist.barrier()


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[DistributedContext]:
    """Connect the processes that torchrun started, or use this process alone.

    device: cpu, cuda (each process has the GPU of its local rank), or auto (cuda if there is a GPU). Raises InputError
    for a device that is missing.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"expected device auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a GPU that PyTorch can use, found none; use --device cpu, or see corrflow-doctor")
    rank, world_size, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise InputError(
            f"expected at most one process for each of {torch.cuda.device_count()} GPUs, got process {local_rank + 1};"
            " lower --nproc-per-node"
        )
    torch_device = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if world_size == 1:
        yield DistributedContext(device=torch_device)
        return
    if on_gpu:
        torch.cuda.set_device(torch_device)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=TIMEOUT)
    try:
        yield DistributedContext(rank, world_size, local_rank, torch_device)
    finally:
        dist.destroy_process_group()


class _AllReduceSum(torch.autograd.Function):
    """Sum over all processes whose backward pass sums the gradients over all processes."""

    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        total = local.contiguous().clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        total = gradient.contiguous().clone()
        dist.all_reduce(total)
        return total


class CpuSyncBatchNorm(nn.BatchNorm2d):
    """Batch normalisation with statistics over all processes, whose batches are equally large.

    PyTorch's SyncBatchNorm supports only GPUs.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _AllReduceSum.apply(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        # A second reduction, because a difference of two large sums would lose the variance to rounding.
        variance = _AllReduceSum.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def sync_batch_norm(module: nn.Module, context: DistributedContext) -> nn.Module:
    """Replace every BatchNorm2d by batch normalisation over all processes; parameters stay the same objects."""
    if context.world_size == 1:
        return module
    if context.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                synchronised = CpuSyncBatchNorm(child.num_features, child.eps, child.momentum)
                synchronised.weight, synchronised.bias = child.weight, child.bias
                for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                    setattr(synchronised, buffer, getattr(child, buffer))
                setattr(parent, name, synchronised.train(child.training))
    return module
