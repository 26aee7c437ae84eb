"""The processes that train one encoder together: who they are, what they agree on, and statistics over all of them.

`torchrun` starts them and says in the environment which one each is; without it there is one. Only their number is
left open: each has an equal share of the clips of a step, so what a step computes does not depend on it.
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

# Videos are decoded while the others wait. torchrun ends all when one fails, so nobody waits this long for the dead.
PATIENCE = timedelta(hours=12)


@dataclass(frozen=True)
class DistributedContext:
    """rank: this process among all `count`; local_rank: among those of its machine; device: where it computes."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def clip_numbers(self, step: int, batch: int, accumulate: int) -> list[int]:
        """Numbers of this process's clips in a step, one part of the accumulation after another.

        Clip n is the same in every arrangement. Raises InputError where the clips cannot be shared out equally.
        """
        if batch % (accumulate * self.count):
            raise InputError(
                f"expected a batch that is a multiple of --accumulate times the processes ({accumulate} x"
                f" {self.count}), got {batch}; change --batch"
            )
        together = batch // accumulate
        share = together // self.count
        starts = [step * batch + part * together + self.rank * share for part in range(accumulate)]
        return [start + clip for start in starts for clip in range(share)]

    def mean(self, values: list[float]) -> list[float]:
        """The mean over all processes of each value."""
        if self.count == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return (total / self.count).tolist()

    def from_first(self, tensor: Tensor) -> Tensor:
        """The first process's tensor, in every process; all give one of the same shape and dtype."""
        if self.count == 1:
            return tensor
        shared = tensor.to(self.device)
        dist.broadcast(shared, 0)
        return shared.to(tensor.device)

    def wait_for_all(self) -> None:
        if self.count > 1:
            dist.barrier()


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[DistributedContext]:
    """The processes that torchrun started, or this one alone, init_distributed for as long as the context lasts.

    device: cpu, cuda (each process has the GPU of its local rank), or auto: cuda where there is one.
    """
    if device not in ("auto", "cpu", "cuda"):
        raise InputError(f"expected device auto, cpu or cuda, got {device!r}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("expected a GPU that PyTorch can use, found none; use --device cpu, or see corrflow-doctor")
    rank, count, local_rank = (
        int(os.environ.get(name, default)) for name, default in (("RANK", 0), ("WORLD_SIZE", 1), ("LOCAL_RANK", 0))
    )
    on_gpu = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if on_gpu and local_rank >= torch.cuda.device_count():
        raise InputError(
            f"expected at most one process for each of {torch.cuda.device_count()} GPUs, got process {local_rank + 1};"
            " lower --nproc-per-node"
        )
    place = torch.device("cuda", local_rank) if on_gpu else torch.device("cpu")
    if count == 1:
        yield DistributedContext(device=place)
        return
    if on_gpu:
        torch.cuda.set_device(place)
    dist.init_process_group("nccl" if on_gpu else "gloo", timeout=PATIENCE)
    try:
        yield DistributedContext(rank, count, local_rank, place)
    finally:
        dist.destroy_process_group()


class _SumOverProcesses(torch.autograd.Function):
    """A sum over all processes, of which each one's loss is differentiated in every process."""

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


class BatchNormOverProcesses(nn.BatchNorm2d):
    """Batch normalisation by the statistics of all processes' equal shares, on the CPU.

    PyTorch's SyncBatchNorm is the same for GPUs alone.
    """

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        x = input.to(torch.promote_types(input.dtype, torch.float32))
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _SumOverProcesses.apply(x.sum((0, 2, 3))) / count
        centred = x - mean[:, None, None]
        # A second exchange, since a difference of two large sums would lose what the variance is.
        variance = _SumOverProcesses.apply(centred.square().sum((0, 2, 3))) / count
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (count / max(count - 1, 1)), self.momentum)
        scale = self.weight / (variance + self.eps).sqrt()
        return (centred * scale[:, None, None] + self.bias[:, None, None]).to(input.dtype)


def normalised_together(module: nn.Module, processes: DistributedContext) -> nn.Module:
    """The module with every BatchNorm2d in it replaced by one over all processes; parameters stay the same objects."""
    if processes.count == 1:
        return module
    if processes.device.type == "cuda":
        return nn.SyncBatchNorm.convert_sync_batchnorm(module)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.BatchNorm2d:
                together = BatchNormOverProcesses(child.num_features, child.eps, child.momentum)
                together.weight, together.bias = child.weight, child.bias
                for buffer in ("running_mean", "running_var", "num_batches_tracked"):
                    setattr(together, buffer, getattr(child, buffer))
                setattr(parent, name, together.train(child.training))
    return module
