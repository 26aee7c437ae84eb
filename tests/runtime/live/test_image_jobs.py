"""Jobs on images leave the tracker its time."""

from __future__ import annotations

import asyncio
import gc
import itertools
import logging
import subprocess
import sys
import threading
import time

import pytest

pytest.importorskip("uvicorn")

from corrflow.errors import CorrflowError
from corrflow.runtime.live.web.image_jobs import Check, ImageJobs

pytestmark = pytest.mark.faults
PART = 0.05  # seconds


class Client:
    """Request whose client is there, or has gone."""

    def __init__(self, has_gone: bool) -> None:
        self.has_gone = has_gone

    async def is_disconnected(self) -> bool:
        return self.has_gone


def test_a_job_of_many_parts_rests_between_them() -> None:
    begins: list[float] = []

    def parts(check: Check) -> None:
        for _ in range(3):
            check()
            begins.append(time.monotonic())
            end = time.thread_time() + PART
            while time.thread_time() < end:
                pass

    asyncio.run(ImageJobs().run(Client(False), parts))  # pyright: ignore[reportArgumentType]
    assert all(later - earlier > 2.9 * PART for earlier, later in itertools.pairwise(begins))


def test_the_error_of_a_job_whose_client_has_gone_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    ended = threading.Event()

    def parts(check: Check) -> None:
        try:
            while True:
                check()
                time.sleep(0.01)
        finally:
            ended.set()

    async def run() -> None:
        with pytest.raises(CorrflowError, match="gone"):
            await ImageJobs().run(Client(True), parts)  # pyright: ignore[reportArgumentType]
        assert ended.wait(5)
        await asyncio.sleep(0.1)
        gc.collect()

    with caplog.at_level(logging.ERROR, "asyncio"):
        asyncio.run(run())
    assert not caplog.records


def test_a_process_that_ends_during_a_job_ends_in_order() -> None:
    program = """
import asyncio, threading, time
import cv2, numpy as np
from corrflow.runtime.live.web.image_jobs import ImageJobs

class Client:
    async def is_disconnected(self): return False

image, begun = np.random.default_rng(0).integers(0, 255, (40, 40, 3), np.uint8), threading.Event()

def work(check):
    while True:
        check()
        begun.set()
        for _ in range(20):
            labels = np.full((40, 40), cv2.GC_PR_FGD, np.uint8)
            labels[:8] = cv2.GC_BGD
            cv2.grabCut(image, labels, None, np.empty(0), np.empty(0), 1, cv2.GC_INIT_WITH_MASK)

threading.Thread(target=lambda: asyncio.run(ImageJobs().run(Client(), work)), daemon=True).start()
begun.wait()
time.sleep(0.1)
"""
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
