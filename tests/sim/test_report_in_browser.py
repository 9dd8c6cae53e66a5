"""The page in a browser without a network: tables sort, nothing is wider than the window, nothing is fetched."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sim.pages import write_validation
from sim.traces import Traces
from sim.validate import validate

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")

# Clicks, and what the page shows then, left in its title for --dump-dom.
PROBE = """
<script>
const table = [...document.querySelectorAll("table.sortable")].find((each) => each.textContent.includes("heavy-10"));
const rows = () => [...table.tBodies[0].rows].map((row) => row.querySelector("code")?.textContent ?? "mean");
const values = () => [...table.tBodies[0].rows].slice(0, -1).map((row) => Number(row.cells[1].dataset.value));
const click = (column) => table.tHead.rows[0].cells[column].querySelector("button").click();
const found = { start: rows() };
click(1); found.rising = values();
click(1); found.falling = values(); found.last = rows().at(-1);
found.sorted = table.tHead.rows[0].cells[1].getAttribute("aria-sort");
click(0); found.names = rows();
found.width = [document.documentElement.scrollWidth, window.innerWidth];
const fetched = performance.getEntriesByType("resource").map((each) => each.name);
found.fetched = fetched.filter((name) => !name.startsWith("data:"));
document.title = JSON.stringify(found);
</script>
"""


def _open(page: Path, width: int, tmp_path: Path) -> dict[str, Any]:
    """Open a page with the probe at its end, and return what that found."""
    probed = tmp_path / "probed.html"
    probed.write_text(page.read_text().replace("</body>", f"{PROBE}</body>"))
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path / 'profile'}"]
    command += [f"--window-size={width},900", "--dump-dom", probed.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    title = re.search(r"<title>(.*?)</title>", dom, re.DOTALL)
    assert title, dom[:500]
    found: dict[str, Any] = json.loads(html.unescape(title[1]))
    return found


@pytest.mark.parametrize("width", [1280, 500])
def test_page_in_a_browser(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    monkeypatch.setenv("MUJOCO_GL", "none-such")
    suite = tmp_path / "s.yaml"
    suite.write_text(
        "- {name: heavy-10, body_mass: {'*': 10.0}}\n- {name: heavy-2, body_mass: {'*': 2.0}}\n"
        "- {name: floating, gravity: 0.1}\n- {name: late, at_step: 20, actuator_gain: {bthigh: 0.0}}\n"
    )
    bundle, traces = make_bundle(), Traces()
    report = validate(bundle, [suite, "mass-damping"], episodes=1, steps=40, watch=traces.add)
    write_validation(tmp_path / "out", bundle, report, traces, "surefoot validate " + "long=" * 60)
    found = _open(tmp_path / "out" / "report.html", width, tmp_path)
    assert found["start"] == ["heavy-10", "heavy-2", "floating", "late", "mean"]
    assert found["rising"] == sorted(found["rising"]) and len(set(found["rising"])) == 4
    assert found["falling"] == found["rising"][::-1]
    assert (found["last"], found["sorted"]) == ("mean", "descending")
    # By their words: gravity, mass times 2, mass times 10, motor.
    assert found["names"] == ["floating", "heavy-2", "heavy-10", "late", "mean"]
    assert found["width"][0] <= found["width"][1]
    assert found["fetched"] == []
