"""The report of a plan, without training."""

import ast
import html
import json
import re
import shlex
import shutil
import subprocess
import sys
import types
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from stand_in_bound import Bound

from geofloor import Plan
from geofloor.planning._checks import Check
from geofloor.planning._cost import StageCost
from geofloor.planning._report import report_html, write_report
from geofloor.planning._report_figure import figure_html
from geofloor.planning._report_rerun import command_line, python_call
from geofloor.planning._settings import PlanSettings
from geofloor.planning._stages import Features, StudentRun, TeacherFacts

VOID = {"meta", "link", "br", "hr", "img", "input"}
CITED = "https://arxiv.org/abs/2604.04037"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WIDTHS = (25, 50, 100)
FEATURES = Features(
    layer=6, n_latents=800, n_features=700, mean_l0=9.5, alpha=0.99, capacity=21.7, critical_width=32.0,
    explained_variance=0.9, tail_exponent=1.1, total=8.0, widths=WIDTHS, kept=(540, 690, 700), floors=(2.0, 0.5, 0.0),
    nats=(0.9, 0.3, 0.0), warnings=(),
)  # fmt: skip


class Narrow(Bound):
    """The bound of tests, of a teacher a tenth as wide."""

    rank_, critical_width_ = 200, 200.0
    curve_ = pd.DataFrame({"width": np.arange(201), "standard_error": 0.001})

    def predict(self, widths, **options):
        return super().predict(10 * np.floor(widths), **options)


def plan_of(losses=None, *, name="folder/teacher", texts=None, features=None, bound=True, **settings):
    losses = {50: 1.6, 150: 0.35} if losses is None else losses
    chosen = PlanSettings(**{"widths": WIDTHS, "run_widths": (50, 150), "budgets": (300,), **settings})
    return Plan(
        chosen,
        TeacherFacts(name, "llama", 200, 12, 16, 32_000, 10**8, ""),
        texts or [Check("text", "ok", "Enough text.")],
        sizes={25: (2, 10**6), 50: (4, 3 * 10**6), 100: (8, 2 * 10**9)},
        bound=Narrow() if bound else None,
        runs=[StudentRun(width, 300, loss, 0.01, "principal") for width, loss in losses.items()],
        features=features,
        costs=[StageCost("bottleneck", 600.0, 2**30, 0.0, 660.0), StageCost("students", 3600.0, 2**31, 2**20, None)],
    )


class Page(HTMLParser):
    """Tags of a page: that they are balanced, what they load, their headings, and the cells of their tables."""

    def __init__(self, text):
        super().__init__()
        self.open, self.loads, self.headings, self.tables, self.ids, self.words = [], [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag, attrs):
        self.handle_startendtag(tag, attrs)
        if tag not in VOID:
            self.open.append(tag)
        if re.fullmatch(r"h\d", tag):
            self.headings.append(int(tag[1]))
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            assert tag == "td" or dict(attrs)["scope"] in ("col", "row")

    def handle_startendtag(self, tag, attrs):
        given = dict(attrs)
        self.loads += [given[name] for name in ("src", "href", "data", "action", "srcset") if name in given]
        self.ids += [given["id"]] if "id" in given else []
        assert not any(name.startswith("on") for name in given)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.words.append(data)
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    @property
    def text(self):
        return " ".join("".join(self.words).split())

    def table(self, first):
        """Return the table whose first heading and one more are given."""
        rows = next(table for table in self.tables if set(first) <= set(table[0]))
        return pd.DataFrame(rows[1:], columns=rows[0])


def check_page(text, first_level):
    page = Page(text)
    assert {each for each in page.loads if not each.startswith(("#", "data:"))} == {CITED}
    assert {each[1:] for each in page.loads if each[0] == "#"} <= set(page.ids)
    assert set(re.findall(r"url\(#?([^)]*)\)", text)) <= set(page.ids)
    assert len(set(page.ids)) == len(page.ids)
    assert "@import" not in text
    assert page.headings[0] == first_level
    assert set(np.diff(page.headings)) <= {0, 1}
    return page


@pytest.fixture(scope="module", autouse=True)
def _few_candidates():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("geofloor.planning._plan._CANDIDATES", 2)  # for the next run: to try many takes a second
        yield


@pytest.fixture(scope="module")
def plan():
    return plan_of(target_kl=0.8, features=FEATURES)


@pytest.fixture(scope="module")
def page(plan):
    return report_html(plan)


def test_a_report_is_one_page_with_the_numbers_of_the_plan(plan, page):
    found, table = check_page(page, 1), plan.table
    shown = found.table(["Width", "Forecast"])
    assert shown["Width"].astype(int).tolist() == table["width"].tolist()
    assert shown["Heads"].tolist() == ["2", "4", "8"]
    assert shown["Parameters"].tolist() == ["1 M", "3 M", "2 B"]
    assert shown["Forecast"].astype(float).tolist() == table["forecast"].round(3).tolist()
    ends = shown["90% interval"].str.split(" to ", expand=True).astype(float).to_numpy()
    assert ends == pytest.approx(table[["low", "high"]].round(3).to_numpy())
    assert shown["Impossible below"].astype(float).tolist() == table["impossible_below"].round(3).tolist()
    assert [each.split(maxsplit=1)[1].lower() for each in shown["Verdict"]] == table["answer"].tolist()
    headline = str(plan.decision).partition(": ")[2].partition(". ")[0]
    assert headline[1:] in found.text
    assert str(plan.next_run()) in found.text
    assert found.table(["Kept"])["Dropped"].tolist() == ["160", "10", "0"]
    assert found.table(["Kept"])["Floor"].tolist() == ["25.0%", "6.2%", "0.0%"]
    assert found.table(["Estimate"])[["Estimate", "Actual"]].to_numpy().tolist() == [
        ["10 min", "11 min"],
        ["60 min", "–"],
        ["70 min", "–"],
    ]
    assert found.table(["Status"])["Finding"].tolist() == plan.checks["message"].tolist()
    assert "<svg" in page
    assert 'lang="en"' in page


def test_parts_of_a_notebook_change_nothing_else_and_share_no_id():
    part = plan_of({}, target_kl=0.8, features=FEATURES)._repr_html_()
    assert "<script" not in part
    found = check_page(part, 3)
    other = Page(report_html(plan_of({}, target_kl=0.7), whole=False))
    assert found.ids
    assert not set(found.ids) & set(other.ids)
    style = re.search(r"<style>(.*?)</style>", part, re.DOTALL)[1]
    assert part.count("<style") == 1
    rules = re.findall(r"([^{}]+)\{", re.sub(r"/\*.*?\*/", "", style, flags=re.DOTALL))
    selectors = [each.strip() for rule in rules if "@" not in rule for each in rule.split(",")]
    assert all(each.startswith(".geofloor-report") for each in selectors)


@pytest.mark.parametrize(
    ("made", "words"),
    [
        ({}, "Students of width 25 to 100 are forecast to end at"),
        (
            {"losses": {}, "run_widths": ()},
            "There is no forecast, and no target. No forecasts: No student was trained.",
        ),
        ({"losses": {}, "target_kl": 0.8}, "There is no forecast of whether a student of width 100 reaches 0.8 nats"),
        (
            {"losses": {}, "target_kl": 0.01, "width": 25},
            "A student of width 25 can't reach 0.01 nats per token, however it is trained: none gets below 0.471. "
            "The target is impossible at every width of the table.",
        ),
        ({"losses": {}, "bound": False, "target_kl": 0.8}, "Nothing was measured yet."),
        (
            {"losses": {50: 8.95, 150: 8.96}, "target_kl": 0.8, "features": FEATURES._replace(warnings=("Not so.",))},
            "No forecasts: After 300 steps the student of width 150 is no better than one of width 0",
        ),
        ({"texts": [Check("text", "failed", "Too little.")], "target_kl": 0.8}, "No forecasts: Too little."),
        ({"target_kl": 0.8, "width": 200, "widths": (100, 200)}, "Students as wide as the teacher, 200, are not"),
    ],
)
def test_a_plan_without_all_answers_says_why(made, words):
    found = check_page(report_html(plan_of(**made)), 1)
    assert words in found.text
    assert "nan" not in found.text.lower().split()
    if "features" in made:
        assert "What students drop is withheld: Not so." in found.text


def test_text_of_the_user_is_escaped():
    name = "<script>alert('1')</script> &amp; \"$body"
    plan = plan_of({}, name=name, texts=[Check("text", "warning", "<img src=x onerror=alert(1)>")], target_kl=0.8)
    page = report_html(plan)
    assert "<script" not in page
    assert "<img" not in page
    assert html.escape(name.partition("/")[2][-10:]) in page
    assert repr(name) in Page(page).text


def test_the_calls_make_the_same_plan_again():
    plan = plan_of(target_kl=0.8, width=60, widths=(25, 60, 100), features=None, random_state=3)
    plan.add_runs({100: 0.75}).add_runs({75: 1.1}, n_steps=200)
    tree = ast.parse(python_call(plan))
    call, *added = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    given = {each.arg: ast.literal_eval(each.value) for each in call.keywords}
    usual = PlanSettings(target_kl=None).to_json()
    assert PlanSettings.read(**usual | given).for_width(200) == plan.settings
    assert [ast.literal_eval(each.args[0]) for each in added] == [{100: 0.75}, {75: 1.1}]
    words = shlex.split(command_line(plan).replace("\\\n", ""))
    assert words[:3] == ["geofloor", "plan", "folder/teacher"]
    options = dict(zip(words[3::2], words[4::2], strict=True))
    assert options == {
        "--text": "TEXT", "--target-kl": "0.8", "--width": "60", "--widths": "25,60,100", "--steps": "300",
        "--seed": "3", "--add-run": "100=0.75",
    }  # fmt: skip
    plan.texts = [Check("text", "failed", "Too little.")]
    assert "The command adds runs of the longest budget only" in report_html(plan)
    loaded = plan_of({}, name="LlamaForCausalLM", run_widths=())
    assert "    teacher,\n" in python_call(loaded)
    assert command_line(loaded).startswith("geofloor plan TEACHER ")
    assert "--run-widths none" in command_line(loaded)
    assert "run_widths=()" in python_call(loaded)


def test_with_plotly_the_figure_is_interactive_and_the_picture_stays(plan, monkeypatch):
    engine = types.ModuleType("plotly.offline")
    engine.get_plotlyjs = lambda: "var Plotly = {react() {}};"
    monkeypatch.setitem(sys.modules, "plotly", types.ModuleType("plotly"))
    monkeypatch.setitem(sys.modules, "plotly.offline", engine)
    page = figure_html(plan, plan.table, "The verdict.", interactive=True)
    Page(page)
    assert "var Plotly" in page
    assert page.count("<svg") == 2
    data = ast.literal_eval(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    at = data["widths"].index(100)
    row = plan.table.set_index("width").loc[100]
    assert [data[name][at] for name in ("losses", "low", "high", "least")] == pytest.approx(
        row[["forecast", "low", "high", "impossible_below"]].astype(float).tolist()
    )
    assert data["runs"] == [[50, 1.6], [150, 0.35]]


def test_a_report_is_written_whole_or_not_at_all(tmp_path):
    plan = plan_of({}, bound=False)
    write_report(plan, tmp_path / "new" / "report.html")
    assert (tmp_path / "new" / "report.html").read_text(encoding="utf-8") == report_html(plan)
    with pytest.raises(OSError, match="report"):
        write_report(plan, tmp_path / "new" / "report.html" / "report.html")


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_a_browser_shows_the_verdict_in_400_pixels(plan, page, tmp_path):
    code = """onload = () => {
        const inside = document.querySelector("iframe").contentWindow, root = inside.document.documentElement;
        const headline = inside.document.querySelector("h1").innerText;
        document.body.textContent = JSON.stringify([inside.innerWidth, root.scrollWidth, headline]);
    }"""
    frame = f'<iframe srcdoc="{html.escape(page)}" style="width: 400px; height: 900px; border: 0"></iframe>'
    file = tmp_path / "report.html"  # windows are never narrower than 500 pixels, frames are
    file.write_text(f"<!DOCTYPE html><meta charset=utf-8><body>{frame}<script>{code}</script>", encoding="utf-8")
    options = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
    command = [CHROMIUM, *options.split(), f"--user-data-dir={tmp_path / 'chrome'}", "--window-size=800,1000"]
    done = subprocess.run(
        [*command, "--dump-dom", file.as_uri()], capture_output=True, text=True, check=True, timeout=300
    )
    inner, needed, headline = json.loads(html.unescape(re.search(r"\[.*\]", done.stdout)[0]))
    assert needed <= inner == 400
    assert headline[1:-1] == str(plan.decision).partition(": ")[2].partition(". ")[0][1:]
