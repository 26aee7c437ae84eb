"""Body of corrflow-label: the page on a video's frames, until the user is done."""

from __future__ import annotations

import os
import signal
import sys
import webbrowser
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from corrflow.runtime.live.label_api import LabelApi
from corrflow.runtime.live.web.auth import Access
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.stopping import stop_deferred, stop_requested, stop_signal


def run_label(
    source: str,
    frame: int,
    folder: Path,
    prompt_path: Path | None,
    access: Access,
    open_browser: bool,
    open_tracker: Callable[[], Tracker],
) -> None:
    """Serve the page until its Done button or Ctrl-C; then print the saved files and the next command.

    frame:                 index of the frame on display at first
    folder, prompt_path:   as of `LabelApi`
    open_tracker:          opens the model once tracking starts

    Raises InputError for a source, a frame or an address that cannot be used.
    """
    from corrflow.runtime.live.web.label_routes import label_routes
    from corrflow.runtime.live.web.server import Server

    console = Console(stderr=True, highlight=False, soft_wrap=True)
    api = LabelApi(source, frame, folder, prompt_path, open_tracker)
    try:
        server = Server(label_routes(api), access)
        try:
            for url in server.access.urls:
                console.print(f"open {url}")
            if open_browser and _has_screen():
                webbrowser.open(server.access.urls[0])
            with stop_deferred(expected=True):
                while not api.done.wait(0.1) and not stop_requested():
                    pass
                # Ctrl-C is the way to end without saving; a lost terminal or a shutdown is not.
                if stop_requested() and stop_signal() != signal.SIGINT:
                    api.save_changes()
        finally:
            server.close()
    finally:
        api.close()
    for path in api.saved:
        console.print(f"wrote {path}")
    if api.unsaved:
        console.print("changes since the last save were not saved")
    if api.next_command:
        console.print(f"next: {api.next_command}")


def _has_screen() -> bool:
    """Return False where only a text browser could open, which would take over the terminal."""
    return sys.platform != "linux" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
