"""Live results in a program of your own: python steer.py CAMERA MASK.png says which way to turn to face each object."""

import sys
from pathlib import Path

from corrflow.runtime.artifacts.artifact import load_artifact
from corrflow.runtime.artifacts.bundled import resolve_model
from corrflow.runtime.backends.registry import open_backend
from corrflow.runtime.formats.mask_png import read_mask_objects
from corrflow.runtime.live.capture.capture import Timeouts
from corrflow.runtime.live.command import open_capture
from corrflow.runtime.live.outputs.worker import Sink, SinkWorker
from corrflow.runtime.live.session import Session
from corrflow.runtime.tracking.tracker import Tracker
from corrflow.runtime.types import FrameResult


class Steering(Sink):
    """Runs in a thread of its own: where it is slow it loses frames, and where it fails it is made again."""

    def write(self, result: FrameResult) -> None:
        width = result.result.mask.shape[1]
        for found in result.result.objects:
            if found.box is not None:
                turn = (found.box[0] + found.box[2]) / width - 1  # -1: the left edge, 1: the right one
                print(f"object {found.id}: {turn:+.2f}, {1000 * result.live.latency:.0f} ms ago", flush=True)

    def close(self) -> None:
        print("stopped")


def main(camera: str, mask: str) -> None:
    capture, _ = open_capture(camera, Timeouts())
    tracker = Tracker(open_backend("auto", load_artifact(resolve_model(None))))
    output = SinkWorker("steering", Steering)
    Session(capture, tracker, read_mask_objects([Path(mask)]), [output]).run()
    output.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
