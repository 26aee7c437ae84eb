"""Ray workers: the items of a batch in actors of a Ray cluster whose machines share a disk."""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from typing import Any

from corrflow.errors import CorrflowError, InputError
from corrflow.runtime.batch.inputs import Item
from corrflow.runtime.batch.process_item import Job, process_item
from corrflow.runtime.batch.workers import CHECK_SECONDS, MAX_ATTEMPTS, REPORT_SECONDS, Event
from corrflow.runtime.tracking.model_options import ModelOptions
from corrflow.stopping import check_stop, signals_kept, stop_requested


class Worker:
    """Actor that opens its tracker once, and processes one item after another."""

    def __init__(self, job: Job, options: ModelOptions) -> None:
        """Open the tracker. Raises InputError."""
        import cv2

        cv2.setNumThreads(options.threads or -1)
        self._progress: tuple[int, int | None] = 0, None
        self._job, self._context = job, options.open()
        self._tracker = self._context.__enter__()

    def process(self, item: Item, attempt: int) -> Event:
        """Process an item, and return its last event.

        attempt: number of the attempt; each has its own folder, because an earlier attempt may still write
        """
        job = replace(self._job, staging=self._job.staging / f"attempt-{attempt}")
        self._progress = 0, None
        try:
            return Event.done(item, process_item(job, item, self._tracker, self._set_progress))
        except CorrflowError as error:
            return Event("failed", item, reason=str(error))
        except Exception as error:  # an unexpected error of one item must not stop the batch
            return Event("failed", item, reason=f"unexpected {type(error).__name__}: {error}")
        finally:
            self._tracker.reset()

    def progress(self) -> tuple[int, int | None]:
        """Return, after REPORT_SECONDS, the frames done of the current item, and the announced number or None."""
        time.sleep(REPORT_SECONDS)
        return self._progress

    def _set_progress(self, frames: int, announced: int | None) -> None:
        self._progress = frames, announced


def run_on_ray(job: Job, options: ModelOptions, items: Sequence[Item], count: int, gpus: int = 0) -> Generator[Event]:
    """Process the items in actors, and yield events as `run_workers` does.

    count: number of actors; 0: as many as the cluster has resources for

    The cluster is that of RAY_ADDRESS, or a new one on this machine that ends with the iteration. An actor has one CPU
    for each thread of the model, and its share of the GPUs. A dead actor is replaced, and its item is tried once more.

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
        with signals_kept():
            ray.init(address=address, log_to_driver=False, logging_level="error", **cluster)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"expected a Ray cluster, got none ({error}); check RAY_ADDRESS") from error
    try:
        available = ray.cluster_resources()
        if gpus > available.get("GPU", 0):
            raise InputError(
                f"expected {gpus} GPUs in the Ray cluster, got {available.get('GPU', 0):g}; give fewer --gpus"
            )
        capacity = int(available.get("CPU", 1)) // cpus
        # An actor runs an item, a request for its progress, and a late request for that of the previous item.
        resources = {"num_cpus": cpus, "num_gpus": min(1.0, gpus / count) if gpus else 0, "max_concurrency": 3}
        actor = ray.remote(**resources)(Worker)
        idle = [actor.remote(job, options) for _ in range(max(1, min(count or capacity, capacity, len(items))))]
        waiting, attempts = list(reversed(items)), dict.fromkeys(items, 0)
        busy: dict[Any, tuple[Any, Item]] = {}
        progress: dict[Any, tuple[Any, Item]] = {}
        while waiting or busy:
            while waiting and idle:
                item, worker = waiting.pop(), idle.pop()
                attempts[item] += 1
                busy[worker.process.remote(item, attempts[item])] = worker, item
                progress[worker.progress.remote()] = worker, item
                yield Event("started", item)
            check_stop()
            ready, _ = ray.wait([*busy, *progress], timeout=CHECK_SECONDS)
            if not ready:
                continue
            (done,) = ready
            if done in progress:
                worker, item = progress.pop(done)
                with suppress(ray.exceptions.RayError):  # `busy` reports the same error
                    frames, announced = ray.get(done)
                    if (worker, item) in busy.values():
                        progress[worker.progress.remote()] = worker, item
                        yield Event("frames", item, frames, announced)
                continue
            worker, item = busy.pop(done)
            try:
                event = ray.get(done)
                idle.append(worker)
                yield event
            except ray.exceptions.RayError as error:
                # An actor that Ray restarts refuses calls for a while, which would cost an attempt.
                ray.kill(worker)
                idle.append(actor.remote(job, options))
                if attempts[item] < MAX_ATTEMPTS:
                    waiting.append(item)
                else:
                    reason = f"its actor died {MAX_ATTEMPTS} times ({type(error).__name__})"
                    yield Event("failed", item, reason=reason)
    finally:
        if not stop_requested():  # a shutdown takes seconds; the cluster of this process ends with it
            ray.shutdown()
