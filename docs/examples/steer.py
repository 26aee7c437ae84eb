"""Use live results in another program: python steer.py CAMERA MASK.png prints which way to turn to face each object."""

import sys
from pathlib import Path

import corrflow
from corrflow.runtime.formats.base import Sink
from corrflow.runtime.formats.prompts import prompts_from_files
from corrflow.runtime.live.capture.capture import Timeouts
from corrflow.runtime.live.command import open_capture
from corrflow.runtime.live.outputs.worker import SinkWorker
from corrflow.runtime.live.session import Session


class Steering(Sink):
    """Sink that runs in a thread of its own. A slow sink loses frames, a failed sink is opened again."""

    def write(self, result: corrflow.FrameResult) -> None:
        width = result.mask.shape[1]
        for one in result.objects:
            if one.box is not None and result.live is not None:
                turn = (one.box[0] + one.box[2]) / width - 1  # -1 at the left edge, 1 at the right edge
                print(f"object {one.id}: {turn:+.2f}, {1000 * result.live.latency:.0f} ms ago", flush=True)

    def close(self) -> None:
        print("stopped")


def main(camera: str, mask: str) -> None:
    capture, _ = open_capture(camera, Timeouts())
    output = SinkWorker("steering", Steering)
    with corrflow.Tracker.from_model() as tracker:
        Session(capture, tracker, prompts_from_files([Path(mask)], None), [output]).run()
    output.close()


if __name__ == "__main__":
    main(*sys.argv[1:])
