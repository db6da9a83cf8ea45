"""Pages in a headless Chromium."""

import html
import json
import re
import shutil
import subprocess

import pytest

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
BEFORE = """<script>
window.faults = [];
addEventListener("error", e => faults.push(String(e.message || e.target.src)), true);
console.error = console.warn = (...words) => faults.push(words.join(" "));
</script>"""
AFTER = """<script>
addEventListener("load", () => setTimeout(() => {  // when every picture is there or has failed
  const decoded = [...document.images].map(image => image.complete && image.naturalWidth > 50);
  const table = document.querySelector("table.sortable"), buttons = table.querySelectorAll("th button");
  const column = i => [...table.tBodies[0].rows].map(row => row.cells[i].textContent);
  const orders = [];
  for (const i of PROBED) for (let click = 0; click < 3; click++) { buttons[i].click(); orders.push(column(i)); }
  const probe = document.createElement("pre");
  probe.id = "probe";
  probe.textContent = JSON.stringify({
    faults, decoded, orders, requests: performance.getEntriesByType("resource").map(entry => entry.name),
    wide: document.documentElement.scrollWidth > innerWidth, width: innerWidth,
    hinted: [...document.querySelectorAll(".scroll")].map(box => box.classList.contains("wide")),
    overflowing: [...document.querySelectorAll(".scroll")].map(box => box.scrollWidth > box.clientWidth + 1),
    anchors: [...document.querySelectorAll("nav a")].map(link => [link.textContent, link.hash]),
    headings: [...document.querySelectorAll("h1, h2, h3")].map(each => [each.tagName, each.id, each.textContent]),
    told: [...document.images].map(image => image.alt),
  });
  parent.document.body.append(probe);
}, 100));
</script>"""


def browse(page, tmp_path, probed=(0, 1), width=1200):
    """What a headless Chromium makes of a page."""
    if CHROMIUM is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    text = page.read_text()
    text = text.replace("<head>", "<head>" + BEFORE).replace(
        "</body>", AFTER.replace("PROBED", str(list(probed))) + "</body>"
    )
    copy = tmp_path / "probed.html"  # in a frame: a window is never narrower than 500 pixels
    frame = f'<iframe srcdoc="{html.escape(text)}" style="border: 0; width: {width}px; height: 900px"></iframe>'
    copy.write_text(f'<!doctype html><meta charset="utf-8"><body style="margin: 0">{frame}</body>')
    flags = "--headless --no-sandbox --disable-gpu --virtual-time-budget=1000 --dump-dom".split()
    command = [CHROMIUM, *flags, f"--user-data-dir={tmp_path / 'profile'}", "--window-size=1600,900", copy.as_uri()]
    dom = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.DOTALL)
    assert found, dom[-2000:]
    return json.loads(html.unescape(found[1]))
