"""Pages in a real browser: no errors, no requests, pictures that decode, tables that sort; and what is on them."""

import html
import math
import re
import shlex
from functools import partial

import numpy as np
import pytest

import mixvae
from browser import browse
from mixvae import config, figures, reports, runs
from mixvae.cli import main
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


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """A report of a run that was configured and one that was built in Python; these, and another one of the latter."""
    folder = tmp_path_factory.mktemp("report")
    flags = ["--data.limit=40", "--training.epochs=1", "--model.components=2", "--model.latent=3"]
    named = runs.train(config.read("digits", [*flags, "--training.optimizer.lr=0.002"]), folder / "named")
    data = mixvae.load_dataset("digits", limit=40)
    made = [named]
    for components in (3, 1):
        encoder = partial(mixvae.networks.GatedEncoder, data.shape, 3, (4,))
        posterior = mixvae.SeparateEncoders(encoder, components)
        model = mixvae.MixtureVAE(posterior, mixvae.StandardNormal(3), mixvae.MLPDecoder(3, data.shape, (4,)))
        path = folder / f"own{components}"
        mixvae.fit(model, data, epochs=2, warmup=1, seed=components, run=path, label="<b>own</b>")
        made.append(mixvae.open_run(path))
    for run in made[:2]:
        run.evaluate(12, examples=20)
    return reports.write(made[:2], folder / "report.html"), made


def test_every_runs_settings_are_on_the_page(report):
    page, made = report
    text = page.read_text()
    for run in made[:2]:
        (table,) = re.findall(rf"All settings of {run.name}</summary>(.*?)</table>", text, re.DOTALL)
        cells = re.findall(r'<tr><th scope="row">(.*?)</th><td>(.*?)</td></tr>', table)
        assert {html.unescape(name): html.unescape(value) for name, value in cells} == reports.settings(run)
    named, own, _ = map(reports.settings, made)
    assert named["training.learning_rate"] == "0.002"
    assert named["model.encoder.class"] == "mixvae.networks.GatedEncoder"
    assert own["model.label"] == "<b>own</b>"
    assert own["model.spec.prior.latent"] == "3"
    assert own["training.warmup"] == "1"
    assert own["training.epochs"] == "2"
    assert own["training.processes"] == "1"
    assert own["data.limit"] == "40"
    assert "<b>own" not in text


def test_what_differs_between_runs_is_on_top(report):
    _, (_, three, one) = report
    rows = reports.differing({run.name: reports.settings(run) for run in (one, three)})
    assert rows == [["model.spec.posterior.components", "1", "3"], ["seed", "1", "3"]]
    assert reports.differing({"one": reports.settings(one)}) == []


def test_changed_learning_rates_are_settings(report):
    _, (named, *_) = report
    journal = [{"epoch": 0, "step": 0, "learning_rate": [0.1]}, {"epoch": 4, "step": 0, "learning_rate": [0.05, 0.01]}]
    recipe = runs.Recipe(named.recipe.identity, tuple(journal))
    again = runs.open_run(named.path)
    again.__dict__["recipe"] = recipe
    held = reports.settings(again)
    assert held["training.learning_rate"] == "0.1"
    assert held["training.learning_rate from epoch 5 on"] == "[0.05, 0.01]"


def test_the_commands_on_the_page_make_the_run_again(report, tmp_path, monkeypatch):
    page, (named, own, _) = report
    (shown,) = re.findall(r'id="run-\d+">named .*?<pre>(.*?)</pre>', page.read_text(), re.DOTALL)
    train, evaluate, _ = (shlex.split(line) for line in html.unescape(shown).splitlines())
    monkeypatch.chdir(tmp_path)
    assert train[-2:] == ["--out", str(named.path)]
    main([*train[1:-1], "again"])
    main([word if word != str(named.path) else "again" for word in evaluate[1:]])
    again = runs.open_run("again")
    assert again.weights_sha256 == named.weights_sha256
    assert runs.evaluation_of(again).identity == runs.evaluation_of(named).identity
    assert named.weights_sha256 in page.read_text()
    (built,) = re.findall(r'id="run-\d+">own3 .*?To reproduce it</h3>(.*?)</pre>', page.read_text(), re.DOTALL)
    assert "mixvae train" not in built
    assert f"mixvae evaluate {own.path}" in html.unescape(built)


def test_contents_lead_to_headings_that_are_in_order(report, tmp_path):
    seen = browse(report[0], tmp_path)
    headings = {f"#{anchor}": title for tag, anchor, title in seen["headings"] if tag == "H2" and anchor != "contents"}
    assert {link: title for title, link in seen["anchors"]} == headings
    assert len(headings) == len(seen["anchors"]) >= 6
    levels = [int(tag[1]) for tag, _, _ in seen["headings"]]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))


def test_a_report_asks_for_nothing_and_says_what_is_seen(report, tmp_path):
    seen = browse(report[0], tmp_path)
    assert (seen["faults"], seen["requests"]) == ([], [])
    assert len(seen["decoded"]) == len(seen["told"]) > 12
    assert all(seen["decoded"])
    assert all(len(words) > 20 for words in seen["told"])
    assert any("S = 3" in words for words in seen["told"])
    text = report[0].read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.findall(r"@import|url\(", text)
    assert not re.findall(r"<th(?![^>]* scope=)[ >]", text)
    assert text.count("<table") == text.count("<caption>")


@pytest.mark.parametrize(("width", "scrolls"), [(420, True), (900, True), (1400, False), (1600, False)])
def test_a_reports_main_table_fits_its_page(report, tmp_path, width, scrolls):
    """At 1400 pixels it was wider than the page had room for."""
    seen = browse(report[0], tmp_path, width=width)
    assert seen["width"] == width
    assert not seen["wide"]
    assert seen["hinted"] == seen["overflowing"]
    assert seen["hinted"][0] is scrolls, "where a table is too wide, it says that it scrolls"


def test_all_columns_are_shown_when_asked_for(report, tmp_path):
    script = """<script>addEventListener("load", () => {
      const told = () => console.warn([...document.querySelector("thead").rows[0].cells]
        .filter(cell => getComputedStyle(cell).display === "none").map(cell => cell.textContent).join());
      told(); document.querySelector(".more input").click(); told();
    });</script></body>"""
    page = tmp_path / "asked.html"
    page.write_text(report[0].read_text().replace("</body>", script))
    seen = browse(page, tmp_path, width=1400)
    assert seen["faults"] == ["of which model,MISELBO NLL,pooled NLL,log p(x) − own bound,JSD,parameters", ""]
    assert not seen["wide"]


def test_a_reports_words_are_explained_on_it(report):
    text = html.unescape(report[0].read_text())
    for word, meaning in reports.meanings(reports.COLUMNS).items():
        if f">{word}</button>" in text or f">{word} ± over examples</button>" in text:
            assert f"<dt>{word}</dt> <dd>{meaning}</dd>" in text
    assert "NLL\n(negative log-likelihood)" in text
    assert "<strong>Effective S</strong> of the table, exp(JSD)" in text, "beside the components used"
    assert not re.findall(r"\b1 (?:examples|draws|epochs|components)\b", text)


def test_a_page_does_not_scroll_sideways_on_a_phone(page, tmp_path):
    page.write_text(page.read_text().replace("a &lt;b&gt;", "a-name-without-any-space-" * 9))
    assert not browse(page, tmp_path, width=420)["wide"]


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
    decided = figures.gains(rows, "gain (nats)", "95 % intervals", decided=[True, True, False, False]).axes[0]
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
    unknown = row | {"nll_tight": None}
    assert column.text(unknown) == "93.46 ± 0.25 *"
    assert reports.table([column], [unknown]) == [[("93.46 ± 0.25", "93.456", "tight?")]]
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
