"""A running session and its page, for tests; the page's frames are a square that moves there and back for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np

from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.live.capture.capture import Capture, Timeouts
from corrflow.runtime.live.capture.readers import ReaderFailed
from corrflow.runtime.live.session import Session
from corrflow.runtime.live.session_control import SessionApi
from corrflow.runtime.live.web.auth import Access
from corrflow.runtime.tracking.occlusion import OcclusionSettings
from corrflow.runtime.tracking.tracker import Tracker
from helpers.page_client import ask, wait_for

INTERVAL = 0.03


class Loop:
    """Camera with frames [N, H, W, 3] there and back, for ever; its device is an open file."""

    def __init__(self, frames: np.ndarray, page: LivePage) -> None:
        self._frames, self._page, self._count = np.concatenate([frames, frames[-2:0:-1]]), page, 0
        self._device = os.open(os.devnull, os.O_RDONLY)

    def read(self) -> np.ndarray:
        time.sleep(INTERVAL)
        if self._page.unplugged:
            self._page.unplugged = False
            raise ReaderFailed("the camera stopped delivering frames")
        self._count += 1
        scale = self._page.scale[0]
        return self._frames[self._count % len(self._frames)].repeat(scale, 0).repeat(scale, 1)

    def close(self) -> None:
        os.close(self._device)


class LivePage:
    """Session in a thread with its page.

    scale:     list of one integer, by which frames are enlarged
    unplugged: set it to True to let the camera fail once
    """

    def __init__(self, folder: Path, artifact: str | Path, frames: np.ndarray, access: Access | None = None) -> None:
        from corrflow.runtime.live.web.live_routes import live_routes
        from corrflow.runtime.live.web.server import Server

        access = access or Access("127.0.0.1", 0)
        self.backend = open_backend("auto", load_artifact(resolve_model(artifact)), threads=1)
        self.scale, self.unplugged = [1], False
        self.session = Session(
            Capture(lambda: Loop(frames, self), Timeouts(10, 10, 0.1)),
            Tracker(self.backend, occlusion=OcclusionSettings()),
            lambda frame: [],
        )
        self.control = SessionApi(self.session, folder / "recorded.mkv", folder / "kept.npz")
        self.server = Server(live_routes(self.session, self.control), access)
        self.port = self.server.access.port
        self.url = f"http://{access.host}:{self.port}"
        self.thread, self.errors = self.session.in_thread()
        wait_for(lambda: self.session.processed)

    def ask(self, method: str, path: str, values: object = None, **headers: str) -> tuple[int, Any]:
        """Send a request, and return its status and its decoded answer."""
        return ask(self.url, method, path, values, **headers)

    def freeze(self) -> int:
        """Freeze a frame, and return its number."""
        status, answer = self.ask("POST", "/api/freeze", {})
        assert status == 200, answer
        return answer["frozen"]

    def draw(self, **values: object) -> int:
        """Add an object, wait until it has joined, and return its id."""
        status, answer = self.ask("POST", "/api/objects", {"frozen": self.freeze(), **values})
        assert status == 201, answer
        wait_for(lambda: self.state(answer["id"]) not in (None, "joining"))
        return answer["id"]

    def state(self, number: int) -> str | None:
        """Return the state of an object; None where there is none of that id."""
        objects = self.ask("GET", "/api/state")[1]["objects"]
        return next((one["state"] for one in objects if one["id"] == number), None)

    def close(self) -> None:
        """End the session, the page and the model."""
        self.session.stop.set()
        self.thread.join(10)
        self.control.record(False)
        self.server.close(5)
        self.backend.close()
