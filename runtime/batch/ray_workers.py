"""The items of a batch on a Ray cluster whose machines share the disk: as `workers`, with actors for processes."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.process_item import Job, do_item
from corrflow.runtime.batch.workers import REPORT_SECONDS, TRIES, Event
from corrflow.runtime.tracking.model_options import ModelOptions


class Worker:
    """An actor's life: it opens its tracker once and does one item after another."""

    def __init__(self, job: Job, options: ModelOptions) -> None:
        import cv2

        cv2.setNumThreads(options.threads or -1)
        self._progress: tuple[int, int | None] = 0, None
        self._job, self._context = job, options.open()
        self._tracker = self._context.__enter__()

    def do(self, item: Item, attempt: int) -> Event:
        """The last event of the item. Each attempt has a folder of its own, should one before it still be writing."""
        job = replace(self._job, staging=self._job.staging / f"attempt-{attempt}")
        self._progress = 0, None
        try:
            return Event("done", item, do_item(job, item, self._tracker, self._note))
        except CorrflowError as error:
            return Event("failed", item, reason=str(error))
        except Exception as error:  # one item's surprise must not stop the night's work
            return Event("failed", item, reason=f"unexpected {type(error).__name__}: {error}")
        finally:
            self._tracker.reset()

    def progress(self) -> tuple[int, int | None]:
        """Frames done of the item at hand, and announced or None: after a while, so that it may be asked at once."""
        time.sleep(REPORT_SECONDS)
        return self._progress

    def _note(self, frames: int, announced: int | None) -> None:
        self._progress = frames, announced


def run_on_ray(job: Job, options: ModelOptions, items: Sequence[Item], count: int, gpus: int = 0) -> Iterator[Event]:
    """Do the items in `count` actors, 0 for as many as the cluster has room for; events as `run_workers` has them.

    The cluster is that of RAY_ADDRESS, else one on this machine, which ends with the iteration. An actor has as many
    CPUs as the model has threads, and its share of the GPUs. One that dies is replaced, and its item tried once more.

    Raises InputError where Ray is missing or the cluster cannot be reached.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise InputError("expected Ray for --ray, found none; pip install 'corrflow[ray]'") from error
    cpus = options.threads or 1
    address = os.environ.get("RAY_ADDRESS") or None
    cluster: dict[str, Any] = {} if address else {"num_cpus": count * cpus or None, "include_dashboard": False}
    if gpus and not address:
        cluster["num_gpus"] = gpus
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **cluster)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"expected a Ray cluster, got none ({error}); check RAY_ADDRESS") from error
    try:
        has = ray.cluster_resources()
        if gpus > has.get("GPU", 0):
            raise InputError(f"expected {gpus} GPUs in the Ray cluster, got {has.get('GPU', 0):g}; give fewer --gpus")
        room = int(has.get("CPU", 1)) // cpus
        # Beside an item, one question about it and a late one about that before.
        resources = {"num_cpus": cpus, "num_gpus": min(1.0, gpus / count) if gpus else 0, "max_concurrency": 3}
        actor = ray.remote(**resources)(Worker)
        idle = [actor.remote(job, options) for _ in range(max(1, min(count or room, room, len(items))))]
        waiting, tries = list(reversed(items)), dict.fromkeys(items, 0)
        busy: dict[Any, tuple[Any, Item]] = {}
        asked: dict[Any, tuple[Any, Item]] = {}
        while waiting or busy:
            while waiting and idle:
                item, worker = waiting.pop(), idle.pop()
                tries[item] += 1
                busy[worker.do.remote(item, tries[item])] = worker, item
                asked[worker.progress.remote()] = worker, item
                yield Event("began", item)
            (done,), _ = ray.wait([*busy, *asked])
            if done in asked:
                worker, item = asked.pop(done)
                with suppress(ray.exceptions.RayError):  # the item itself says so too
                    frames, announced = ray.get(done)
                    if (worker, item) in busy.values():
                        asked[worker.progress.remote()] = worker, item
                        yield Event("frames", item, frames, announced)
                continue
            worker, item = busy.pop(done)
            try:
                event = ray.get(done)
                idle.append(worker)
                yield event
            except ray.exceptions.RayError as error:
                # Ray could start it again, but refuses what is asked of it until then: that would cost a try.
                ray.kill(worker)
                idle.append(actor.remote(job, options))
                if tries[item] < TRIES:
                    waiting.append(item)
                else:
                    reason = f"its actor died {TRIES} times ({type(error).__name__})"
                    yield Event("failed", item, reason=reason)
    finally:
        ray.shutdown()
