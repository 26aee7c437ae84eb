"""Table of models by published protocols: J&F of each, and the joints of BADJA."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table
from rich.text import Text

from corrflow.atomic_files import write_file
from corrflow.errors import InputError
from corrflow.evaluate.datasets.points import JointSequence
from corrflow.evaluate.masks import Method
from corrflow.evaluate.points import evaluate_badja
from corrflow.evaluate.reports.files import file_name
from corrflow.evaluate.reports.report import MaskReport, MethodReport, mean_scores
from corrflow.evaluate.reports.result_store import method_identity, program

BADJA_PROTOCOL = "plain"
"""Protocol of the BADJA column; occlusion handling is for masks alone, and the published protocols track masks."""


def model_of(method: Method | MethodReport) -> str:
    """Return the label of a method without its protocol."""
    return method.label.removesuffix(f" {method.protocol}")


def badja_scores(
    videos: Sequence[JointSequence],
    methods: Sequence[Method],
    workers: int = 1,
    results: Path | None = None,
    fresh: bool = False,
    show_progress: bool = False,
) -> dict[str, dict[str, float]]:
    """Compute BADJA's score of each video, 0..1, by model and by video; NaN where no joint is scored.

    results: folder that caches the scores, <method>/<video>.json, until something that they depend on changes
    fresh:   ignore cached scores
    """
    scores: dict[str, dict[str, float]] = {}
    hashes = {video.name: _video_hash(video) for video in videos} if results is not None else {}
    for method in methods:
        own: dict[str, float] = {}
        paths, keys = {}, {}
        if results is not None:
            identity = method_identity(method.predictor.describe())
            for video in videos:
                paths[video.name] = results / file_name(method.label) / f"{file_name(video.name)}.json"
                key = {"method": identity, "data": hashes[video.name], "program": program()}
                keys[video.name] = json.loads(json.dumps(key))
                cached = None if fresh else _cached(paths[video.name], keys[video.name])
                if cached is not None:
                    own[video.name] = cached
        missing = [video for video in videos if video.name not in own]
        if missing:
            report = evaluate_badja(missing, [method], workers, show_progress)
            for name, (share,) in report.videos[method.label].items():
                own[name] = share
                if results is not None:
                    stored = {"key": keys[name], "score": None if share != share else share}
                    write_file(paths[name], json.dumps(stored) + "\n")
        scores[model_of(method)] = {video.name: own[video.name] for video in videos}
    return scores


def _video_hash(video: JointSequence) -> str:
    digest = hashlib.sha256()
    for path in video.image_paths:
        try:
            digest.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError as error:
            raise InputError(f"expected to read {path}, got {error.strerror}; complete the data set") from error
    for array in (video.joints, video.visible, video.areas):
        digest.update(b"none" if array is None else array.tobytes())
    return digest.hexdigest()


def _cached(path: Path, key: dict[str, Any]) -> float | None:
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["key"] != key:
            return None
        return float("nan") if stored["score"] is None else float(stored["score"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def published_rows(
    reports: Mapping[str, MaskReport], badja: Mapping[str, Mapping[str, float]] | None = None
) -> list[dict[str, Any]]:
    """Return a row of JSON values for each data set and model: means over objects, 0..1, by protocol.

    A method without the tracker has the same scores under each protocol.

    reports: by the data set's label
    badja:   scores by model and video
    """
    rows = []
    for label, report in reports.items():
        protocols = _protocols(report)
        by_model: dict[str, dict[str, dict[str, float]]] = {}
        for method in report.methods:
            scores = by_model.setdefault(model_of(method), {})
            for protocol in protocols if method.protocol is None else (method.protocol,):
                scores[protocol] = mean_scores(method.sequences.values())
        for model, scores in by_model.items():
            row: dict[str, Any] = {"set": label, "model": model, "protocols": scores}
            if badja is not None:
                videos = {name: None if share != share else share for name, share in badja[model].items()}
                measured = [share for share in videos.values() if share is not None]
                row["badja"] = {"mean": sum(measured) / len(measured) if measured else None, "videos": videos}
            rows.append(row)
    return rows


def published_table(reports: Mapping[str, MaskReport], rows: Sequence[Mapping[str, Any]]) -> Table:
    """Build the table of `published_rows`: J&F in percent by protocol, and the joints of BADJA in percent."""
    protocols = _protocols(next(iter(reports.values())))
    several, joints = any(reports), any("badja" in row for row in rows)
    table = Table(title="J&F of each protocol, means over objects, percent")
    for name in (*(["data set"] if several else []), "model"):
        table.add_column(name, no_wrap=True)
    for name in (*protocols, *(["BADJA\nPCK@0.2"] if joints else [])):
        table.add_column(Text(name), justify="right", no_wrap=True)
    previous = None
    for row in rows:
        if row["set"] != previous:
            table.add_section()
            previous = row["set"]
        values = [row["protocols"].get(protocol, {}).get("J&F") for protocol in protocols]
        values += [row["badja"]["mean"]] if joints else []
        names = [Text(row["set"])] if several else []
        cells = ["" if value is None else f"{100 * value:.1f}" for value in values]
        table.add_row(*names, Text(row["model"]), *cells)
    return table


def _protocols(report: MaskReport) -> list[str]:
    return list(dict.fromkeys(method.protocol for method in report.methods if method.protocol is not None))
