"""Names and prose: standard terms, imperative docstrings, short sentences."""

from __future__ import annotations

import ast
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers.paths import ROOT

ROOMS = ("src", "plugins", "runtime", "train", "export", "evaluate", "bench", "examples", "docs/examples")
SOURCES = sorted(path for room in ROOMS for path in (ROOT / room).rglob("*.py"))
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "runtime/models").rglob("*.md")])
MAX_WORDS = 25

# Names that only this project used; the standard term stands beside each.
OLD_NAMES = {
    "Tracks": "FrameResult", "ObjectTrack": "ObjectResult", "FrameTracks": "FrameResult", "LiveResult": "FrameResult",
    "Watch": "OcclusionMonitor", "judge": "update", "PresenceSettings": "OcclusionSettings", "Presence": "ObjectState",
    "presence": "occlusion", "watched": "redetect", "strays": "spurious components", "stray": "spurious component",
    "stray_gap": "min_component_gap", "likeness": "appearance similarity", "plank": "full occluder",
    "Follower": "WindowMotion", "Followed": "ObjectChannels", "aims": "offsets", "aimed": "SearchPlan",
    "searched_with": "SearchPlan", "named_references": "indexed references", "most_searched": "max_windows",
    "moves_windows": "supports_window_offsets", "any_attributes": "supports_runtime_search_params",
    "anchors": "permanent_frames", "dilate_after": "dilate_past_age", "edge_radius": "refine_radius",
    "remember": "add_frame", "memory_is_renewed_after": "memory_length", "outlines": "mask refinement",
    "strand": "target", "Strand": "Target", "strands": "targets", "Spool": "FrameCache", "spool": "frame cache",
    "made_from": "input_digest", "receipt": "completion record", "whole_video": "bidirectional",
    "board": "canvas", "Board": "canvas", "giving": "submitting", "thaw": "unfreeze", "Editing": "ObjectEditor",
    "Control": "SessionApi", "Patience": "Timeouts", "patience": "timeouts", "Pace": "LatencyStats",
    "Latest": "LatestResult", "claim_path": "unique_path", "adopt": "merge", "_passage": "_staging",
    "Programs": "GraphSet", "recordable": "supports_cuda_graph", "Learner": "Trainer", "learner": "trainer",
    "Records": "RunLogger", "Smaller": "FrameSampling", "joined": "init_distributed",
    "taught": "teacher_features", "truth_start": "teacher_forcing_start", "truth_end": "teacher_forcing_end",
    "stills": "images", "smallest_view": "min_crop_scale", "rival": "baseline", "untrained": "random-init",
    "MaskMaker": "MaskPredictor", "Made": "MaskPrediction", "inert_pickle": "safe_pickle", "Asked": "SearchRequest",
    "Tried": "Trial", "shrink": "resize", "onnx_guard": "onnx_check", "container_end": "truncation",
    "whole_file": "atomic_files", "artifact_path": "resolve_model", "LOST_POINT": "MIN_POINT_CONFIDENCE",
    "MIN_POINT_PEAK": "MIN_POINT_CONFIDENCE", "blend_passes": "blend_masks", "ObjectChannels": "channels",
}  # fmt: skip
EVERYDAY = {
    "board",
    "adopt",
    "joined",
    "outlines",
    "shrink",
    "plank",
    "rival",
}  # English words that only code must not use
# Names of tensors inside the step.onnx files of published models.
GRAPH_NAMES = {"export/step_graph.py": {"anchors"}}
PROSE_ONLY = {
    "back end": "backend",
    "back ends": "backends",
    "held against": "compared with",
    "soft label": "soft mask",
}
# First words of docstrings that do not begin with a verb, or with one that is not imperative.
NO_IMPERATIVE = re.compile(
    r"^(?:An?|The|One|Two|All|Both|Each|Every|Any|Some|As|Of|In|On|By|For|From|With|Without|What|How|Whether|Where|When"
    r"|Why|Who|Which|That|This|These|It|Its|They|Ours?|No|Not|None|Only|Also|True|False|\[.*|\(.*|\d.*|\w+(?<![sui])s)\b"
)
IMPERATIVES_IN_S = {"Pass", "Process", "Express", "Press", "Compress", "Access", "Address", "Focus", "Guess", "Miss"}


def docstrings(path: Path) -> Iterator[tuple[ast.Module | ast.ClassDef | ast.FunctionDef, str]]:
    """Yield every definition with its docstring."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and (text := ast.get_docstring(node)):
            yield node, text


def is_property(node: ast.AST) -> bool:
    return isinstance(node, ast.FunctionDef) and any("property" in ast.unparse(one) for one in node.decorator_list)


def sentences(text: str) -> list[str]:
    """Split prose into sentences; code, tables, lists of fields and headings are no prose."""
    text = re.sub(r"```.*?```", "", text, flags=re.S)
    text = re.sub(
        r"^(?:\s*[|#>├└│].*|\s{4,}.*|[a-z_][\w, .`/*-]*:\s.*|[\w, .`/*-]+:\s{2,}.*|\S+\s{2,}.*)$", "", text, flags=re.M
    )
    text = re.sub(r"!?\[([^\]]*)\]\([^)]*\)", r"\1", text)
    text = re.sub(r"`[^`]*`", "Code", text)
    parts = re.split(r"(?<=[.!?:;])[*)\"]*\s+(?=[\"A-Z\d*(\[])|\n\s*\n|^\s*(?:[-*]|\d+\.)\s+", text, flags=re.M)
    return [" ".join(part.split()) for part in parts if part and part.strip()]


def too_long(text: str) -> list[str]:
    return [one for one in sentences(text) if len(re.findall(r"[\w'%/-]*[A-Za-z][\w'%/-]*", one)) > MAX_WORDS]


def words_of_code(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the identifiers of a file, and the words of its comments and docstrings, with their lines."""
    with path.open("rb") as file:
        for token in tokenize.tokenize(file.readline):
            if token.type == tokenize.NAME:
                yield token.start[0], token.string
            elif token.type in (tokenize.COMMENT, tokenize.STRING):
                for word in re.findall(r"[A-Za-z_]+", token.string):
                    yield token.start[0], word


def identity(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", SOURCES, ids=identity)
def test_functions_have_imperative_docstrings(path: Path) -> None:
    wrong = []
    for node, text in docstrings(path):
        first = text.split(maxsplit=1)[0].strip('."`')
        if not isinstance(node, ast.FunctionDef) or is_property(node) or first in IMPERATIVES_IN_S:
            continue
        if NO_IMPERATIVE.match(first) or not first[:1].isupper():
            wrong.append(f"{path.name}:{node.lineno} {node.name}: {text.splitlines()[0]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", SOURCES, ids=identity)
def test_docstrings_have_short_sentences(path: Path) -> None:
    wrong = [f"{path.name}: {one}" for _, text in docstrings(path) for one in too_long(text)]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", DOCUMENTS, ids=identity)
def test_documents_have_short_sentences(path: Path) -> None:
    wrong = too_long(path.read_text(encoding="utf-8"))
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("path", [*SOURCES, *DOCUMENTS], ids=identity)
def test_standard_terms_are_used(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    words = (
        words_of_code(path)
        if path.suffix == ".py"
        else (
            (number, word)
            for number, line in enumerate(text.splitlines(), 1)
            for word in re.findall(r"[A-Za-z_]+", line)
        )
    )
    allowed = GRAPH_NAMES.get(identity(path), set()) | (EVERYDAY if path.suffix == ".md" else set())
    old = OLD_NAMES.keys() - allowed
    wrong = [f"{path.name}:{line} {word}: say {OLD_NAMES[word]}" for line, word in words if word in old]
    wrong += [f"{path.name}: {old}: say {new}" for old, new in PROSE_ONLY.items() if re.search(rf"\b{old}\b", text)]
    assert not wrong, "\n".join(wrong)
