"""The report in a browser: no script error, figures there, labels whole, tables that sort."""

import html
import json
import os
import re
import shutil
import subprocess

import pandas as pd
import pytest

from dynchoice.run import cli
from dynchoice.run.init import write_sample

NASTY = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "a & b $x_{$ 100%",
    "ünï 中文",
]
NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")

PROBE = """
<script>
window.addEventListener("load", function () {
  const found = { errors: window.probeErrors, clipped: [], tables: {}, wide: 0 };
  document.querySelectorAll("svg").forEach(function (svg) {
    const box = svg.getBoundingClientRect();
    svg.querySelectorAll("text").forEach(function (t) {
      const b = t.getBoundingClientRect();
      const off = Math.max(box.left - b.left, b.right - box.right, box.top - b.top, b.bottom - box.bottom);
      if (off > 1) { found.clipped.push([svg.getAttribute("aria-label"), t.textContent, off]); }
    });
  });
  found.figures = document.querySelectorAll("figure svg").length;
  found.sizes = Array.from(document.querySelectorAll("figure svg")).map(s => s.getBoundingClientRect().width);
  found.wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  document.querySelectorAll("table.sortable").forEach(function (table) {
    const out = [];
    table.querySelectorAll("th button").forEach(function (button, i) {
      button.click();
      const up = Array.from(table.tBodies[0].rows).map(r => r.cells[i].dataset.value ?? r.cells[i].textContent);
      button.click();
      const down = Array.from(table.tBodies[0].rows).map(r => r.cells[i].dataset.value ?? r.cells[i].textContent);
      out.push({ number: table.tBodies[0].rows.length > 0 && table.tBodies[0].rows[0].cells[i].classList.contains("number"), up: up, down: down });
    });
    found.tables[table.id] = out;
  });
  const pre = document.createElement("pre");
  pre.id = "probe";
  pre.textContent = JSON.stringify(found);
  document.body.appendChild(pre);
});
</script>
"""  # noqa: E501
CATCH = """<script>window.probeErrors = [];
window.addEventListener("error", e => window.probeErrors.push(String(e.message)));
window.alert = m => window.probeErrors.push("alert " + m);</script>"""


@pytest.fixture(scope="module")
def browser():
    found = next((p for p in map(shutil.which, NAMES) if p), None)
    if found is None:
        if os.environ.get("CI"):
            pytest.fail("no Chromium on this machine")
        pytest.skip("no Chromium on this machine")
    return found


def probed(browser, page, folder, width):
    """Open a page at a width, and return what its own scripts see."""
    text = page.read_text(encoding="utf-8")
    copy = folder / f"probe-{width}.html"
    text = text.replace("<head>", f"<head>{CATCH}", 1).replace("</body>", f"{PROBE}</body>", 1)
    copy.write_text(text, encoding="utf-8")
    done = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900",
         f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom",
         f"file://{copy}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A forecast and a backtest whose labels are as bad as labels can be."""
    folder = tmp_path_factory.mktemp("report") / "s"
    write_sample(folder)
    rows = pd.read_parquet(folder / "members.parquet")
    rows["segment"] = rows["segment"].map({"families": NASTY[0], "students": NASTY[1]})
    rows.to_parquet(folder / "members.parquet")
    text = (folder / "run.toml").read_text()
    text = text.replace('"music for all"', json.dumps(NASTY[2]))
    text = text.replace('"annual 15% off"', json.dumps(NASTY[3], ensure_ascii=False))
    text = text.replace('title = "Membership forecast"', f"title = {json.dumps(NASTY[0])}")
    (folder / "run.toml").write_text(text, encoding="utf-8")
    fast = ["--quiet", "--set", "forecast.draws=10", "--set", "backtest.draws=5",
            "--set", "backtest.origins=1"]  # fmt: skip
    assert cli.main(["forecast", str(folder / "run.toml"), *fast]) == 0
    assert cli.main(["backtest", str(folder / "run.toml"), *fast]) == 0
    return folder / "out" / "current" / "report.html", folder / "out" / "backtest" / "backtest.html"


@pytest.mark.slow
@pytest.mark.parametrize("which", [0, 1])
@pytest.mark.parametrize("width", [390, 1280])
def test_a_page_in_a_browser(browser, runs, tmp_path, which, width):
    found = probed(browser, runs[which], tmp_path, width)
    assert found["errors"] == []
    assert found["clipped"] == []
    assert found["figures"] == ([3 + 2 + 2, 3][which])
    assert min(found["sizes"]) > 250
    assert found["wide"] <= 0  # the page itself never scrolls sideways, wide tables do
    assert len(found["tables"]) == ([8, 3][which])
    for name, columns in found["tables"].items():
        for column in columns:
            up, down = column["up"], column["down"]
            assert sorted(up) == sorted(down), name
            if column["number"]:
                values = [float(v) for v in up if v != ""]
                assert values == sorted(values), name
                values = [float(v) for v in down if v != ""]
                assert values == sorted(values, reverse=True), name


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
def test_labels_are_escaped_and_nothing_comes_from_outside(runs):
    for page in runs:
        text = page.read_text(encoding="utf-8")
        assert "<script>alert" not in text and "<img" not in text
        scripts = re.findall(r"<script[^>]*>", text)
        assert scripts == ["<script>"]
        links = re.findall(r'(?:src|href|xlink:href)="([^"]*)"', text)
        assert all(x.startswith("#") for x in links)
        assert not re.findall(r"url\((?!#)", text)
    text = runs[0].read_text(encoding="utf-8")
    assert html.escape(NASTY[0]) in text and "ünï 中文" in text


@pytest.mark.filterwarnings("ignore:Glyph .* missing from font")
@pytest.mark.slow
def test_the_same_run_has_the_same_page(runs, tmp_path):
    folder = runs[0].parents[2]
    for name in ("run.toml", "members.parquet"):
        shutil.copy(folder / name, tmp_path)
    assert cli.main(["forecast", str(tmp_path / "run.toml"), "--quiet", "--set",
                     "forecast.draws=10", "--set", "backtest.draws=5", "--set",
                     "backtest.origins=1"]) == 0  # fmt: skip
    again = tmp_path / "out" / "current"
    for name in ("report.html", "take_up.parquet", "forecast.txt", "summary.txt", "forecast.png"):
        assert (again / name).read_bytes() == (runs[0].parent / name).read_bytes(), name


def test_every_table_is_documented_and_every_column_there(runs):
    from dynchoice.run.tables import SCHEMA

    folder = runs[0].parent
    record = json.loads((folder / "manifest.json").read_text())
    files = {p.stem for p in folder.glob("*.parquet")}
    assert files == set(record["tables"]) == set(SCHEMA)
    for name in files:
        table = pd.read_parquet(folder / f"{name}.parquet")
        assert list(table.columns) == list(SCHEMA[name]), name
        told = record["tables"][name]
        assert told["rows"] == len(table)
        assert all(c["meaning"] for c in told["columns"].values())


def test_a_manager_and_an_economist_find_what_they_look_for(runs):
    text = runs[0].read_text(encoding="utf-8")
    for part in ("In short", "If nothing changes", "How sure we are", "What the data cannot tell",
                 "joining cost", "Std. error", "condition number", "hardest to tell apart",
                 "Per customer and period", "revenue"):  # fmt: skip
        assert part in text
