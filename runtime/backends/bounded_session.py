"""Sessions of ONNX Runtime on the CPU within a limit on memory.

The check of an ONNX file finds sizes that are written in it. A graph may as well compute them when it runs, by
arithmetic on shapes, or by joining a value with itself thirty times. Only the allocator sees those.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import lru_cache
from typing import TYPE_CHECKING

from corrflow.file_budget import MOST_MEMORY

if TYPE_CHECKING:
    import onnxruntime


def open_session(content: bytes, threads: int) -> onnxruntime.InferenceSession:
    """Open a checked graph on the CPU. What exceeds the limit raises an error of ONNX Runtime, as other faults do.

    threads: number of threads; 0 for all cores
    """
    import onnxruntime

    _bound_memory()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # errors; its warnings are about its own optimiser
    # Spinning threads would hold the cores that the caller needs next.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.add_session_config_entry("session.use_env_allocators", "1")
    # Constants are folded with an allocator of its own, which has no limit. Ours are folded at export.
    return onnxruntime.InferenceSession(
        content, options, providers=["CPUExecutionProvider"], disabled_optimizers=["ConstantFolding"]
    )


def most_memory() -> int:
    """Return the bytes that all sessions of this process may take: half of the machine's, and 8 GB at most."""
    with suppress(AttributeError, OSError, ValueError):  # systems that do not tell
        return min(MOST_MEMORY, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return MOST_MEMORY


@lru_cache(maxsize=1)
def _bound_memory() -> None:
    """Let the sessions of this process share one allocator with a limit."""
    import onnxruntime

    memory = onnxruntime.OrtMemoryInfo(
        "Cpu", onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
    )
    with suppress(Exception):  # another library in this process has an allocator for its sessions, which these take
        onnxruntime.create_and_register_allocator(memory, onnxruntime.OrtArenaCfg({"max_mem": most_memory()}))
