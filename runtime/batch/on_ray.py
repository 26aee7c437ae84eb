"""The items of a batch on a Ray cluster whose machines share the disk: as `workers`, with actors for processes."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib import import_module
from typing import Any

from corrflow.plugins.errors import CorrflowError, InputError
from corrflow.runtime.batch.items import Item
from corrflow.runtime.batch.job import Job, do_item
from corrflow.runtime.batch.workers import TRIES, Event
from corrflow.runtime.command import Model


class Worker:
    """An actor's life: it opens its tracker once and does one item after another."""

    def __init__(self, job: Job, model: Model) -> None:
        import cv2

        cv2.setNumThreads(model.threads or -1)
        self._job, self._context = job, model.tracker()
        self._tracker = self._context.__enter__()

    def do(self, item: Item, attempt: int) -> Event:
        """The last event of the item. Each attempt has a folder of its own, should one before it still be writing."""
        job = replace(self._job, staging=self._job.staging / f"attempt-{attempt}")
        try:
            return Event("done", item, do_item(job, item, self._tracker, lambda frames, announced: None))
        except CorrflowError as error:
            return Event("failed", item, reason=str(error))
        except Exception as error:  # one item's surprise must not stop the night's work
            return Event("failed", item, reason=f"unexpected {type(error).__name__}: {error}")
        finally:
            self._tracker.reset()


def run_on_ray(job: Job, model: Model, items: Sequence[Item], count: int) -> Iterator[Event]:
    """Do the items in `count` actors, 0 for as many as the cluster has room for; events as `run_workers` has them.

    The cluster is that of RAY_ADDRESS, else one on this machine, which ends with the iteration. An actor has as many
    CPUs as the model has threads. One that dies is started again, and its item tried once more.

    Raises InputError where Ray is missing or the cluster cannot be reached.
    """
    try:
        ray: Any = import_module("ray")
    except ImportError as error:
        raise InputError("expected Ray for --ray, found none; pip install 'corrflow[ray]'") from error
    cpus = model.threads or 1
    address = os.environ.get("RAY_ADDRESS") or None
    options: dict[str, Any] = {} if address else {"num_cpus": count * cpus or None, "include_dashboard": False}
    try:
        ray.init(address=address, log_to_driver=False, logging_level="error", **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise InputError(f"expected a Ray cluster, got none ({error}); check RAY_ADDRESS") from error
    try:
        room = int(ray.cluster_resources().get("CPU", 1)) // cpus
        actor = ray.remote(num_cpus=cpus, max_restarts=-1)(Worker)
        idle = [actor.remote(job, model) for _ in range(max(1, min(count or room, room, len(items))))]
        waiting, tries = list(reversed(items)), dict.fromkeys(items, 0)
        busy: dict[Any, tuple[Any, Item]] = {}
        while waiting or busy:
            while waiting and idle:
                item, worker = waiting.pop(), idle.pop()
                tries[item] += 1
                busy[worker.do.remote(item, tries[item])] = worker, item
                yield Event("began", item)
            (done,), _ = ray.wait(list(busy))
            worker, item = busy.pop(done)
            idle.append(worker)
            try:
                yield ray.get(done)
            except ray.exceptions.RayError as error:
                if tries[item] < TRIES:
                    waiting.append(item)
                else:
                    reason = f"its actor died {TRIES} times ({type(error).__name__})"
                    yield Event("failed", item, reason=reason)
    finally:
        ray.shutdown()
