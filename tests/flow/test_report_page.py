"""The page in a real browser: nothing overlaps or is cut off, wide or narrow, light or dark."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import report_folder
from spectrim.report.page import write_page

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
pytestmark = pytest.mark.skipif(BROWSER is None, reason="no chromium or google-chrome on the path")

# Runs in a copy of the page only; the page itself has no script.
MEASURE = """<script>
const found = {width: innerWidth, scroll: document.scrollingElement.scrollWidth, overlaps: [],
  outside: [], small: [], paper: getComputedStyle(document.documentElement).backgroundColor,
  ink: getComputedStyle(document.documentElement).color, figures: 0};
for (const svg of document.querySelectorAll("svg")) {
  const own = svg.getBoundingClientRect();
  if (!own.width) continue;
  found.figures += 1;
  const boxes = [...svg.querySelectorAll("text")].map(
    one => [one.textContent, one.getBoundingClientRect()]);
  boxes.forEach(([name, a], i) => {
    if (a.left < own.left - 1 || a.right > own.right + 1 || a.top < own.top - 1 ||
        a.bottom > own.bottom + 1) found.outside.push(name);
    if (a.height < 8.5) found.small.push(name);
    boxes.slice(i + 1).forEach(([other, b]) => {
      if (a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 &&
          b.top < a.bottom - 3) found.overlaps.push([name, other]);
    });
  });
}
parent.document.documentElement.dataset.found = JSON.stringify(found);
console.info("measured");
</script></body>"""

FRAME = """<!DOCTYPE html><html><head><meta charset="utf-8" /><meta name="color-scheme"
content="light dark" /></head><body style="margin:0"><iframe style="border:0;width:{width}px;
height:9000px" srcdoc="{page}"></iframe></body></html>"""


def browse(page: Path, scratch: Path, width: int, dark: bool, *more: str) -> tuple[str, str]:
    """Return the document or nothing, and what the browser logged."""
    command = [
        str(BROWSER),
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        "--disable-background-networking",
        "--enable-logging=stderr",
        f"--user-data-dir={scratch / 'profile'}",
        f"--window-size={width},3000",
        f"--blink-settings=preferredColorScheme={int(not dark)}",
        *more,
        page.as_uri(),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    return done.stdout, done.stderr


def measured(folder: Path, scratch: Path, width: int, dark: bool, *others: Path) -> dict[str, Any]:
    written = write_page(folder, None, others).read_text(encoding="utf-8")
    copy = scratch / "measured.html"
    # A window of a desktop browser is never as narrow as a telephone; a frame in it can be.
    framed = html.escape(written.replace("</body>", MEASURE))
    copy.write_text(FRAME.format(width=width, page=framed), encoding="utf-8")
    document, logged = browse(copy, scratch, width, dark, "--dump-dom")
    found = re.search(r'data-found="([^"]*)"', document)
    assert found is not None
    told: dict[str, Any] = json.loads(html.unescape(found[1]))
    return told | {"console": re.findall(r":CONSOLE[:(]\d+\)?\] \"(.*?)\"", logged)}


def luminance(colour: str) -> float:
    red, green, blue = map(int, re.findall(r"\d+", colour)[:3])
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1400])
def test_the_page_on_a_suite_and_two_runs_reads_well(
    tmp_path: Path, width: int, dark: bool
) -> None:
    folder = report_folder.write(tmp_path / "small", suite=True)
    other = report_folder.write(tmp_path / "run-60", keep=0.6, excess=0.57, suite=True)
    found = measured(folder, tmp_path, width, dark, other)
    assert found["console"] == ["measured"]  # of the measurement; the page itself says nothing
    assert found["width"] == width
    assert found["scroll"] <= width
    # Front, speed and prediction; bars of two units; maps; spectra; cosine; attention, Fourier.
    assert found["figures"] == 3 + 2 + 3 + 7 + 1 + 2 * 2
    assert found["overlaps"] == found["outside"] == found["small"] == []
    assert (luminance(found["paper"]) < 0.2) == dark
    assert abs(luminance(found["paper"]) - luminance(found["ink"])) > 0.7


@pytest.mark.parametrize(("width", "blocks"), [(390, 24), (1400, 40)])
def test_a_deep_model_with_many_roles(tmp_path: Path, width: int, blocks: int) -> None:
    folder = report_folder.write(tmp_path / "deep", blocks=blocks)
    plan = json.loads((folder / "plan.json").read_text())
    more = [one | {"role": f"decoder_cross_{one['role']}"} for one in plan["decisions"]]
    plan["decisions"] += more
    (folder / "plan.json").write_text(json.dumps(plan))
    found = measured(folder, tmp_path, width, dark=False)
    assert found["scroll"] <= width
    assert found["overlaps"] == found["outside"] == []


def test_a_screenshot_is_more_than_paper(tmp_path: Path) -> None:
    page = write_page(report_folder.write(tmp_path / "small"))
    picture = tmp_path / "page.png"
    browse(page, tmp_path, 1400, False, f"--screenshot={picture}")
    assert picture.stat().st_size > 100_000
