"""The tree reads like the plan: imports point one way, the package list is whole, the runtime is light."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers.paths import ROOT

if sys.version_info >= (3, 11):
    import tomllib
else:  # the standard library has it from 3.11 on
    tomllib = pytest.importorskip("tomli")

ROOMS = ("plugins", "runtime", "train", "export", "evaluate", "bench")
ALLOWED = {
    "plugins": {"plugins"},
    "runtime": {"runtime", "plugins"},
    "train": {"train", "runtime", "plugins"},
    "export": {"export", "evaluate", "train", "runtime", "plugins"},
    "evaluate": {"evaluate", "runtime", "plugins"},
    "bench": {"bench", "evaluate", "export", "train", "runtime", "plugins"},
}
FACE = {
    "errors",
    "file_budget",
    "atomic_files",
    "special_files",
    "command_line",
    "entry_points",
    "html_template",
    "output_paths",
    "run_lock",
    "status_stream",
    "stopping",
}  # modules of the package's face, for every room
MODULES = {
    "train": "corrflow.train.cli",
    "prepare": "corrflow.train.prepare_cli",
    "export": "corrflow.export.cli",
    "track": "corrflow.runtime.commands.track_cli",
    "label": "corrflow.runtime.commands.label_cli",
    "batch": "corrflow.runtime.commands.batch_cli",
    "doctor": "corrflow.runtime.commands.doctor_cli",
    "eval": "corrflow.evaluate.cli",
    "bench": "corrflow.bench.cli",
}


def imported_modules(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found.add(node.module or "")
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("room", ROOMS)
def test_imports_follow_the_plan(room: str) -> None:
    for path in (ROOT / room).rglob("*.py"):
        for module in imported_modules(path):
            parts = module.split(".")
            assert parts[0] not in ROOMS, f"{path} imports {module} without its package"
            if parts[0] == "corrflow" and len(parts) > 1:
                assert parts[1] in ALLOWED[room] | FACE, f"{path} imports {module}"
            if room in ("runtime", "evaluate"):
                assert parts[0] not in ("torch", "onnx", "onnxscript"), f"{path} imports {module}"


RUNTIME_LEVELS = (
    {"commands"},
    {"live", "batch"},
    {"api"},
    {"tracking"},
    {"formats", "backends"},
    {"video", "artifacts"},
    {"types", "settings"},
)


def test_imports_inside_the_runtime_run_down_only() -> None:
    """A room of the runtime imports itself and rooms of lower levels."""
    level = {room: index for index, rooms in enumerate(RUNTIME_LEVELS) for room in rooms}
    runtime = ROOT / "runtime"
    for path in runtime.rglob("*.py"):
        own = path.relative_to(runtime).parts[0].removesuffix(".py")
        for module in imported_modules(path):
            parts = module.split(".")
            if parts[:2] == ["corrflow", "runtime"] and len(parts) > 2 and parts[2] != own:
                assert own != "__init__" and level[own] < level[parts[2]], f"{path} imports {module}"
            assert parts[0] != "typer" or own == "commands", f"{path} imports typer"


def test_the_root_of_the_runtime_has_few_modules() -> None:
    modules = {path.stem for path in (ROOT / "runtime").glob("*.py")}
    assert modules == {"__init__", "api", "settings", "types"}
    rooms = {path.parent.name for path in (ROOT / "runtime").glob("*/__init__.py")} | modules
    assert rooms - {"__init__", "models"} == set().union(*RUNTIME_LEVELS)


def test_every_folder_of_code_is_installed(tmp_path: Path) -> None:
    """The installed package finds each folder's modules from a directory that is not the clone."""
    folders = {path.parent.relative_to(ROOT) for room in ROOMS for path in (ROOT / room).rglob("*.py")}
    names = ["corrflow", *("corrflow." + ".".join(folder.parts) for folder in sorted(folders))]
    program = f"import importlib.util; print([n for n in {names} if importlib.util.find_spec(n) is None])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


def test_tracking_never_loads_torch(tmp_path: Path) -> None:
    """A back end at work, in a process of its own."""
    program = (
        "import sys, numpy as np, corrflow.runtime.commands.track\n"
        "from corrflow.runtime.artifacts.artifact import load_artifact\n"
        "from corrflow.runtime.artifacts.bundled import resolve_model\n"
        "from corrflow.runtime.backends.registry import open_backend\n"
        "open_backend('auto', load_artifact(resolve_model(None)), 1).encode(np.zeros((32, 32, 3), np.uint8))\n"
        "print([name for name in ('torch', 'onnx', 'corrflow.train', 'corrflow.export') if name in sys.modules])\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.alone
@pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())
def test_help_is_quick_and_has_examples(module: str) -> None:
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", module, "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - start)
    assert "corrflow-" in done.stdout
    # 0.3 s on an idle machine; a bare Python start on the same machine says how idle this one is.
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", "pass"], check=True)
    bare = time.perf_counter() - start
    assert min(seconds) < max(0.3, 12 * bare)


def test_the_slow_files_are_there() -> None:
    names = (ROOT / "tests" / "slow_files.txt").read_text().split("\n\n")[1].split()
    assert names and [name for name in names if not (ROOT / "tests" / name).is_file()] == []
