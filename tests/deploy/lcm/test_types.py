"""The generated types are what lcm-gen makes of the .lcm files."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import deploy.lcm
from deploy.lcm import generated

TYPES = Path(deploy.lcm.__path__[0]) / "types"
GENERATED = Path(generated.__path__[0])


def test_generated_types_are_up_to_date(tmp_path: Path) -> None:
    generate = "import sys, lcm; sys.exit(lcm.run_script('lcm-gen', sys.argv[1:]))"
    sources = map(str, sorted(TYPES.glob("*.lcm")))
    options = ["--python", "--python-no-init", "--ppath", str(tmp_path)]
    subprocess.run([sys.executable, "-c", generate, *options, *sources], check=True, timeout=60)
    made = {file.relative_to(tmp_path): file.read_bytes() for file in tmp_path.rglob("*.py")}
    kept = {file.relative_to(GENERATED): file.read_bytes() for file in GENERATED.rglob("*_t.py")}
    assert len(made) == 3
    assert made == kept
    assert " ".join(options[:2]) in (deploy.lcm.__doc__ or "")
