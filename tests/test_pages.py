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
        configurations=None,
        trainings={"columns": columns, "rows": reports.table(columns, rows)},
        warnings=["take <care>"],
        first={"data": "digits", "examples": 3, "split": "test", "total_draws": 5},
        gains=picture,
        splits=picture,
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
    assert seen["decoded"] == [True, True, True]


def test_a_page_does_not_scroll_sideways_on_a_phone(page, tmp_path):
    assert not browse(page, tmp_path, width=500)["wide"]


def test_a_probe_sees_what_is_wrong(page, tmp_path):
    broken = page.read_text().replace("data:image/png;base64,iVBOR", "data:image/png;base64,xxxxx")
    page.write_text(broken.replace("</table>", "</table><script>nonsense()</script>"))
    seen = browse(page, tmp_path)
    assert any("nonsense" in fault for fault in seen["faults"])
    assert seen["decoded"] == [False, False, False]


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


def test_a_gain_of_a_single_training_is_not_emphasised():
    """It was blue beyond two errors over images, within which most pairs of seeds do not lie."""
    rows = [("a", 1.0, 0.1), ("b", -1.0, 0.1), ("c", 0.05, 0.1), ("d", 1.0, math.nan)]
    plain = figures.gains(rows, "gain (nats)", "standard error over examples").axes[0]
    assert len({text.get_color() for text in plain.texts}) == 1
    assert plain.get_xlabel() == "gain (nats)\nbars: standard error over examples"
    assert plain.texts[3].get_text() == "+1.000"
    decided = figures.gains(rows, "gain (nats)", "95 % intervals", decides=True).axes[0]
    gain, loss, undecided, unknown = (text.get_color() for text in decided.texts)
    assert len({gain, loss, undecided}) == 3
    assert undecided == unknown == plain.texts[0].get_color()


def test_gains_of_single_trainings_have_normal_weight(page):
    table = page.read_text().split("<tbody>")[1].split("</tbody>")[0]
    assert not any(mark in table for mark in ("<b>", "<strong", "<em", "class=", "style="))


def test_a_value_that_is_not_tight_is_marked():
    """An NLL with unreliable weights was printed like any other."""
    column = Column("NLL", "nll", "se", trust="nll")
    row = {"nll": 93.456, "se": 0.25, "nll_tight": True, "nll_reliable": True}
    assert column.text(row) == column.text({"nll": 93.456, "se": 0.25}) == "93.46 ± 0.25"
    assert column.text(row | {"nll_tight": None}) == "93.46 ± 0.25"
    loose = row | {"nll_tight": False}
    assert column.text(loose) == "93.46 ± 0.25 *"
    assert column.text(loose | {"nll_reliable": False}) == "93.46 ± 0.25? *"
    assert reports.table([column], [loose]) == [[("93.46 ± 0.25", "93.456", "not tight")]]
    assert column.text({"nll_tight": False}) == "–"
    assert [mark[0] for mark in reports.legend([column], [row, loose])] == ["*"]


def test_a_split_shows_the_sum_and_both_parts():
    rows = {"S = 4": [(1.02, 0.02), (0.59, math.nan), (0.43, 0.01)], "S = 2": [(-0.2, 0.1), (-0.5, 0.1), (0.3, 0.1)]}
    axes = figures.splits(rows, "standard errors").axes[0]
    widths = [bar.get_width() for bar in axes.patches]
    assert widths == pytest.approx([1.02, 0.59, 0.43, -0.2, -0.5, 0.3])
    assert axes.texts[1].get_text() == "+0.590"
    assert axes.texts[4].get_text() == "−0.500 ± 0.100"
