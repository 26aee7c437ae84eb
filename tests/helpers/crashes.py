"""How a process of the tests ended that should not have: xdist says only that it is gone."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object | None) -> None:
    """Print the signal or exit code and the memory; a kill, as where memory runs out, leaves no other trace."""
    if error is None:
        return
    import resource  # not on Windows

    try:
        code = node.gateway._io.popen.wait(10)
    except (AttributeError, subprocess.TimeoutExpired):
        how = "still runs without its connection"
    else:
        how = f"ended by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss  # kB
    memory = [
        line
        for path in (Path("/proc/meminfo"), Path("/sys/fs/cgroup/memory.events"))
        if path.is_file()
        for line in path.read_text().splitlines()
        if line.startswith(("MemTotal", "MemAvailable", "SwapFree", "oom_kill "))
    ]
    facts = "; ".join([how, f"largest process so far {largest} kB", *(" ".join(line.split()) for line in memory)])
    node.config.pluginmanager.getplugin("terminalreporter").write_line(f"\n{node.gateway.id}: {facts}")
