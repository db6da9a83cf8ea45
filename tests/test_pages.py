"""Pages in a real browser: no errors, no requests, pictures that decode, tables that sort."""

import math

import numpy as np
import pytest

from browser import browse
from mixvae import figures, reports
from mixvae.reports import Column


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
    picture = reports.embed(figures.gains([("a", 1.0, 0.1), ("b", -1.0, 0.1)], "gain (nats)"))
    return reports.render(
        "report.html",
        tmp_path / "page.html",
        columns=columns,
        rows=reports.table(columns, rows),
        warnings=["take <care>"],
        first={"data": "digits", "examples": 3, "split": "test", "total_draws": 5},
        gains=picture,
        curves=picture,
        sections=[],
    )


def test_table_sorts_numbers_and_names_and_back_with_gaps_last(page, tmp_path):
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
