"""What pip installs for ROS 2: the package's marker, manifest, executables, parameters and launch files."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[3]
PACKAGE = ROOT / "deploy" / "ros2"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
LAUNCH_FILES = sorted((PACKAGE / "launch").iterdir())


def installed(folder: str) -> dict[str, Path]:
    """Files that pip puts into a folder of the prefix, by name."""
    patterns = PROJECT["tool"]["setuptools"]["data-files"][folder]
    return {path.name: path for pattern in patterns for path in ROOT.glob(pattern)}


def test_an_installed_prefix_is_one_of_ament() -> None:
    assert set(installed("share/ament_index/resource_index/packages")) == {"surefoot"}
    assert set(installed("share/surefoot")) == {"package.xml"}
    for folder in ("config", "launch"):
        there = {path.name for path in (PACKAGE / folder).iterdir() if path.is_file()}
        assert there and set(installed(f"share/surefoot/{folder}")) == there


def test_the_manifest_is_that_of_the_distribution() -> None:
    manifest = ElementTree.parse(PACKAGE / "package.xml").getroot()
    assert manifest.findtext("name") == PROJECT["project"]["name"]
    assert manifest.findtext("version") == PROJECT["project"]["version"]
    assert manifest.findtext("license") == PROJECT["project"]["license"]
    source = "".join(path.read_text() for path in PACKAGE.glob("*.py"))
    imported = set(re.findall(r"^(?:from|import) (rclpy|\w+_(?:msgs|srvs|interfaces))\b", source, re.M))
    assert imported <= {dependency.text for dependency in manifest.findall("exec_depend")}


@pytest.mark.parametrize("name", sorted(installed("lib/surefoot")))
def test_an_executable_runs_a_module(name: str) -> None:
    script = installed("lib/surefoot")[name]
    assert os.access(script, os.X_OK)
    (module,) = re.findall(r'^exec python3 -m ([\w.]+) "\$@"$', script.read_text(), re.M)
    spec = importlib.util.find_spec(module)
    assert spec is not None and "def main() -> int:" in Path(str(spec.origin)).read_text()


def calls(tree: ast.AST, name: str) -> Iterator[ast.Call]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == name:
            yield node


def keyword(call: ast.Call, name: str) -> Any:
    """A keyword's value, None where it is not given as a constant."""
    values = {word.arg: word.value for word in call.keywords}
    value = values.get(name)
    return value.value if isinstance(value, ast.Constant) else None


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_a_launch_file_uses_what_it_declares_and_starts_what_is_there(path: Path) -> None:
    tree = ast.parse(path.read_text())
    arguments = {ast.literal_eval(call.args[0]): call for call in calls(tree, "DeclareLaunchArgument")}
    used = {ast.literal_eval(call.args[0]) for call in calls(tree, "LaunchConfiguration")}
    assert used == set(arguments) and "bundle" in used
    assert all(keyword(call, "description") for call in arguments.values())
    started = {(keyword(node, "package"), keyword(node, "executable")) for node in calls(tree, "Node")}
    assert {("surefoot", "policy_node"), ("surefoot", "safety_node")} <= started
    assert started <= {("surefoot", name) for name in installed("lib/surefoot")}


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_a_launch_file_is_one_of_launch(path: Path) -> None:
    launch = pytest.importorskip("launch", reason="pip has no launch; a robot's ROS 2 does")
    namespace: dict[str, Any] = {}
    exec(compile(path.read_text(), path, "exec"), namespace)
    assert isinstance(namespace["generate_launch_description"](), launch.LaunchDescription)


SOURCES = {
    "policy_node": [PACKAGE / "policy_node.py"],
    "safety_node": [PACKAGE / "safety_node.py"],
    "mujoco_node": [PACKAGE / "plant_node.py", ROOT / "sim" / "ros2_plant.py"],
}


def declared(executable: str) -> set[str]:
    """Parameters that a node declares."""
    source = "".join(path.read_text() for path in SOURCES[executable])
    return set(re.findall(r'(?:define\(|declare\(\s*\w+, )\s*"(\w+)"', source))


@pytest.mark.parametrize("node", ["policy", "safety"])
def test_the_parameter_file_holds_every_parameter(node: str) -> None:
    file = OmegaConf.to_container(OmegaConf.load(PACKAGE / "config" / "robot.yaml"))
    assert isinstance(file, dict)
    assert set(file[f"/**/{node}"]["ros__parameters"]) == declared(f"{node}_node")


def test_arguments_of_the_robots_launch_file_win_over_the_parameter_file_only_where_they_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # pip has no launch; what stands in for it here keeps what it is given.
    class Argument(str):
        def perform(self, context: dict[str, str]) -> str:
            return context.get(self, "")

    actions = {"DeclareLaunchArgument": SimpleNamespace, "OpaqueFunction": SimpleNamespace}
    modules = {
        "ament_index_python.packages": {"get_package_share_directory": str},
        "launch": {"LaunchContext": dict, "LaunchDescription": list},
        "launch.actions": {**actions, "DeclareLaunchArgument": lambda name, **_: name},
        "launch.substitutions": {"LaunchConfiguration": Argument},
        "launch_ros.actions": {"Node": SimpleNamespace},
        "launch_ros.parameter_descriptions": {"ParameterValue": lambda value, value_type: value_type},
    }
    for name, content in modules.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**content))
    namespace: dict[str, Any] = {}
    exec(compile((PACKAGE / "launch" / "robot.launch.py").read_text(), "robot.launch.py", "exec"), namespace)
    *_, started = namespace["generate_launch_description"]()

    def parameters(**arguments: str) -> list[list[Any]]:
        return [node.parameters for node in started.function({"bundle": "b", **arguments})]

    assert {"bundle", "public_key"} <= declared("safety_node")
    assert {"bundle", "public_key", "dry_run", "autostart"} <= declared("policy_node")
    assert parameters() == [["params_file", {"bundle": str}]] * 2
    key = {"public_key": str}
    assert parameters(dry_run="true", autostart="false", public_key="k") == [
        ["params_file", {"bundle": str}, key, {"dry_run": bool}, {"autostart": bool}],
        ["params_file", {"bundle": str}, key],
    ]


@pytest.mark.parametrize("path", LAUNCH_FILES, ids=lambda path: path.name)
def test_a_launch_file_sets_parameters_that_there_are(path: Path) -> None:
    for node in calls(ast.parse(path.read_text()), "Node"):
        parameters = {
            ast.literal_eval(key) for part in ast.walk(node) if isinstance(part, ast.Dict) for key in part.keys if key
        }
        assert parameters <= declared(str(keyword(node, "executable")))
