"""Who may import whom: offline_train -> sim -> deploy -> adapters, and a light `deploy`."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
LAYERS = ["offline_train", "sim", "deploy", "adapters"]
HEAVY = {"torch", "mujoco", "gymnasium", "h5py", "minari", "matplotlib"}


def sources(layer: str) -> list[Path]:
    return sorted((ROOT / layer).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported(tree: ast.AST) -> set[str]:
    """First names of everything that a tree imports, relative imports included as '.'."""
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add("." if node.level else (node.module or "").partition(".")[0])
    return names


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_point_to_the_right(layer: str) -> None:
    forbidden = {*LAYERS[: LAYERS.index(layer)], "."}
    assert sources(layer)
    for path in sources(layer):
        wrong = imported(ast.parse(path.read_text())) & forbidden
        assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))}"


@pytest.mark.parametrize("layer", ["deploy", "adapters"])
def test_heavy_packages_are_not_imported_at_module_level(layer: str) -> None:
    for path in sources(layer):
        tree = ast.parse(path.read_text())
        inside = [n for n in ast.walk(tree) if isinstance(n, (ast.FunctionDef, ast.AsyncFunctionDef))]
        lazy = {id(node) for function in inside for node in ast.walk(function)}
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)) and id(node) not in lazy:
                wrong = imported(node) & HEAVY
                assert not wrong, f"{path.relative_to(ROOT)} imports {', '.join(sorted(wrong))} at module level"


def test_middleware_stays_in_its_folder() -> None:
    for layer in LAYERS:
        for path in sources(layer):
            place = path.relative_to(ROOT).parts[:2]
            names = imported(ast.parse(path.read_text()))
            assert "rclpy" not in names or place == ("deploy", "ros2"), path
            assert "lcm" not in names or place == ("deploy", "lcm"), path


def loaded_by(*modules: str) -> set[str]:
    """First names of what a fresh interpreter has loaded after importing the modules."""
    code = f"import sys\nfor name in {modules!r}: __import__(name)\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    return {name.partition(".")[0] for name in done.stdout.split()}


def test_importing_deploy_loads_nothing_heavy() -> None:
    assert not loaded_by("deploy") & (HEAVY | {"onnx", "sim", "offline_train"})


def test_importing_all_of_deploy_and_adapters_loads_nothing_heavy() -> None:
    # What needs a middleware is imported only where that middleware is installed.
    modules = [
        module_name(path)
        for layer in ("deploy", "adapters")
        for path in sources(layer)
        if path.relative_to(ROOT).parts[1] not in ("ros2", "lcm")
    ]
    loaded = loaded_by(*modules)
    assert {"deploy", "adapters", "numpy"} <= loaded
    assert not loaded & (HEAVY | {"onnx", "sim", "offline_train"})


def test_command_line_is_lazy() -> None:
    assert not loaded_by("surefoot") & (HEAVY | {"numpy", "onnxruntime", "deploy", "sim", "offline_train"})
