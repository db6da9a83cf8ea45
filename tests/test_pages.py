"""Pages in a real browser: no errors, no requests, pictures that decode, tables that sort."""

import html
import json
import math
import re
import shutil
import subprocess

import numpy as np
import pytest

from mixvae import figures, pages
from mixvae.pages import Column

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BEFORE = """<script>
window.faults = [];
addEventListener("error", e => faults.push(String(e.message || e.target.src)), true);
console.error = console.warn = (...words) => faults.push(words.join(" "));
</script>"""
AFTER = """<script>
addEventListener("load", () => {  // when every picture is there or has failed
  const decoded = [...document.images].map(image => image.complete && image.naturalWidth > 50);
  const table = document.querySelector("table.sortable"), buttons = table.querySelectorAll("th button");
  const column = i => [...table.tBodies[0].rows].map(row => row.cells[i].textContent);
  const orders = [];
  for (const i of PROBED) for (let click = 0; click < 3; click++) { buttons[i].click(); orders.push(column(i)); }
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify({
    faults, decoded, orders, requests: performance.getEntriesByType("resource").map(entry => entry.name),
    wide: document.documentElement.scrollWidth > innerWidth,
  });
  document.body.append(probe);
});
</script>"""


def browse(page, tmp_path, probed=(0, 1), width=1200):
    """What a headless Chromium makes of a page."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    text = page.read_text()
    text = text.replace("<head>", "<head>" + BEFORE).replace(
        "</body>", AFTER.replace("PROBED", str(list(probed))) + "</body>"
    )
    copy = tmp_path / "probed.html"
    copy.write_text(text)
    flags = "--headless --no-sandbox --disable-gpu --dump-dom".split()
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", f"--window-size={width},900", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    return json.loads(html.unescape(found[1]))


@pytest.fixture
def page(tmp_path):
    """A page with a table of text, numbers and gaps, and a picture."""
    columns = [Column("name", "name"), Column("value", "value", "error", 1)]
    rows = [
        {"name": "b10", "value": 9.0, "error": 0.5},
        {"name": "b9", "value": 10.0, "error": math.nan},
        {"name": "a <b>&", "value": None},
        {"name": "c", "value": -2.5},
    ]
    picture = pages.embed(figures.gains([("a", 1.0, 0.1), ("b", -1.0, 0.1)], "gain (nats)"))
    return pages.render(
        "report.html",
        tmp_path / "page.html",
        columns=columns,
        rows=pages.table(columns, rows),
        warnings=["take <care>"],
        first={"data": "digits", "examples": 3, "split": "test", "draws": 5},
        gains=picture,
        curves=picture,
        sections=[],
    )


def test_a_table_sorts_by_numbers_and_names_and_back_with_gaps_last(page, tmp_path):
    seen = browse(page, tmp_path)
    names, values = seen["orders"][:3], seen["orders"][3:]
    assert names == [["a <b>&", "b9", "b10", "c"], ["c", "b10", "b9", "a <b>&"], ["b10", "b9", "a <b>&", "c"]]
    assert values == [
        ["−2.5", "9.0 ± 0.5", "10.0", "–"],
        ["10.0", "9.0 ± 0.5", "−2.5", "–"],
        ["9.0 ± 0.5", "10.0", "–", "−2.5"],
    ]


def test_a_page_has_no_faults_and_asks_for_nothing(page, tmp_path):
    seen = browse(page, tmp_path)
    assert seen["faults"] == []
    assert seen["requests"] == []
    assert seen["decoded"] == [True, True]


def test_a_page_does_not_scroll_sideways_on_a_phone(page, tmp_path):
    assert not browse(page, tmp_path, width=500)["wide"]


def test_a_probe_sees_what_is_wrong(page, tmp_path):
    broken = page.read_text().replace("data:image/png;base64,iVBOR", "data:image/png;base64,xxxxx")
    page.write_text(broken.replace("</table>", "</table><script>nonsense()</script>"))
    seen = browse(page, tmp_path)
    assert any("nonsense" in fault for fault in seen["faults"])
    assert seen["decoded"] == [False, False]


def test_what_a_user_wrote_stays_text(page):
    text = page.read_text()
    assert "a &lt;b&gt;&amp;" in text
    assert "take &lt;care&gt;" in text


def test_a_value_has_its_error_sign_and_digits():
    column = Column("gain", "gain", "se", 3, signed=True)
    assert column.text({"gain": 0.5, "se": 0.25}) == "+0.500 ± 0.250"
    assert column.text({"gain": -1234.5, "se": None}) == "−1,234.500"
    assert column.text({"gain": math.nan}) == column.text({}) == "–"
    assert column.key({"gain": np.float64(2)}) == "2.0"
