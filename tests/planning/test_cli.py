"""The command line: what it prints, its exit codes, and its errors of one line."""

import dataclasses
import inspect
import shutil
import subprocess
import sys
from types import SimpleNamespace

import pandas as pd
import pytest
from click.testing import CliRunner
from small_models import as_text, llama, random_sequences, word_tokenizer

from geofloor import LossForecaster
from geofloor.language_models import BottleneckPredictor
from geofloor.planning import Plan, _cli, _cli_inputs, _distillation
from geofloor.planning._cli import main
from geofloor.planning._cli_click import Mistake, in_options
from geofloor.planning._cli_inputs import find_teacher, find_texts
from geofloor.planning._cli_runs import read_runs
from geofloor.planning._settings import PlanSettings

SMALL = ["--tokens", "2100", "--length", "16", "--batch-size", "2", "--steps", "3", "--no-features", "--widths", "8,9"]
RUNS = "width,loss,n_steps\n32,0.3811,1000\n96,0.0500,1000\n32,0.3541,2000\n96,0.0390,2000\n"


def run(*words, **options):
    return CliRunner().invoke(main, [str(word) for word in words], **options)


def error_of(result, code):
    """Return the one line of an error."""
    assert result.exit_code == code, result.output
    assert result.stderr.startswith("geofloor: error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def calls(monkeypatch):
    """Replace the work by a record of its calls."""
    made = []

    def make_plan(*given, **options):
        made.append((given, options))
        options["proceed"](SimpleNamespace(costs=[SimpleNamespace(seconds=601.0)]))

    monkeypatch.setattr(_distillation, "make_plan", make_plan)
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a model, its tokenizer and two files of text."""
    folder = tmp_path_factory.mktemp("cli")
    llama().save_pretrained(folder / "model")
    word_tokenizer().save_pretrained(folder / "model")
    for name, text in zip("ab", as_text(random_sequences([1300, 1200])), strict=True):
        (folder / f"{name}.txt").write_text(text)
    (folder / "runs.csv").write_text(RUNS)
    return folder


@pytest.fixture(scope="module")
def command(folder):
    return ["plan", folder / "model", "--text", folder / "a.txt", folder / "b.txt", *SMALL, "--output", folder / "plan"]


@pytest.fixture(scope="module")
def finished(command, folder):
    environment = {"TENSORBOARD_LOGGING_DIR": str(folder / "runs")}
    result = run(*command, "--target-kl", "0.1", "--report-to", "tensorboard", env=environment)
    assert result.exit_code == 0, result.output
    return result


# Help


def test_help_and_mistakes_load_nothing_heavy():
    heavy = {"torch", "transformers", "pandas", "numpy", "scipy", "sklearn", "matplotlib", "datasets", "tqdm"}
    code = (
        "import sys\nfrom geofloor.planning._cli import main\n"
        "helps = [[name, '--help'] for name in main.commands]\n"
        "for words in (['--help'], ['--version'], *helps, ['plan', '--steps', 'x']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert end.code == 2 * (words[-1] == 'x'), words\n"
        f"print(*{heavy} & set(sys.modules))"
    )
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed.splitlines()[-1] == ""
    assert "Exit codes" in printed


def test_options_have_the_names_and_defaults_of_the_library():
    settings = {each.name: each.default for each in dataclasses.fields(PlanSettings)}
    arguments = inspect.signature(_distillation.plan_distillation).parameters
    given = _cli.plan.make_context("plan", ["a model"]).params
    own = {"no_features", "traceback", "yes", "check", "runs"}
    assert set(given) - own == set(arguments) - {"features"}
    defaults = {name: settings[name] for name in set(given) & set(settings) - {"budgets"}}
    assert {name: given[name] for name in defaults} == defaults


def test_the_shell_completes_commands():
    words = {"_GEOFLOOR_COMPLETE": "bash_complete", "COMP_WORDS": "geofloor fore", "COMP_CWORD": "1"}
    assert run(env=words).stdout == "plain,forecast\n"


# Mistakes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["plam"], "No such command 'plam'"),
        (["plan", "--tokens", "-5"], "--tokens=-5 must be a whole number of at least 1."),
        (["plan", "--widths", "0"], "--widths=0 must be"),
        (["plan", "--steps", "0,5"], "--steps=0 must be"),
        (["plan", "--steps", "few"], "such as 100,200"),
        (["plan", "--target-kl", "0"], "--target-kl=0.0 must be"),
        (["plan", "--add-run", "448:0.2"], "such as 448=0.21"),
        (["plan", "--model-kwargs", "[1]"], "must be an object in JSON"),
        (["plan", "no/such/folder"], "MODEL 'no/such/folder' is no folder"),
        (["plan", "model", "--check"], "--check needs a target"),
        (["plan", "--text", "a.txt", "nothing.txt"], "--text 'nothing.txt' is not there"),
        (["plan", "--text", "."], "is a folder"),
        (["plan", "--text", "empty.txt"], "--text 'empty.txt' is empty"),
        (["plan", "--text", "binary.txt"], "no text in UTF-8"),
        (["plan", "--text", "null.txt"], "null characters"),
        (["plan", "--text", "body.jsonl"], "no column 'text' among 'body'"),
        (["plan", "--text", "broken.jsonl"], "can't be read as jsonl"),
        (["features", "--sae", "nothing"], "--sae 'nothing' is not there"),
        (["bound", "--output", "model/config.json/x"], "can't be written"),
        (["forecast", "nothing.csv"], "'nothing.csv' is not there"),
        (["forecast", "runs.csv", "--width", "64"], "--width needs a target"),
        (
            ["forecast", "runs.csv", "--target", "1", "--teacher-width", "64"],
            "check --teacher-width, and that the column",
        ),
        (["forecast", "runs.csv", "--bound", "runs.csv"], "--bound: 'runs.csv'"),
        (["forecast", "rising.csv"], "'rising.csv': The loss rises with width: 0.3 at width 32, 0.9 at width 64."),
    ],
)
def test_a_mistake_is_one_line_before_any_work(folder, monkeypatch, calls, words, message):
    monkeypatch.chdir(folder)
    (folder / "empty.txt").write_text(" \n")
    (folder / "binary.txt").write_bytes(b"\xff\xfe\x00")
    (folder / "null.txt").write_bytes(b"a\0b")
    (folder / "body.jsonl").write_text('{"body": "a"}\n')
    (folder / "broken.jsonl").write_text('{"text": ')
    (folder / "rising.csv").write_text("width,loss\n32,0.3\n64,0.9\n")
    assert message in error_of(run(*words), 2)
    assert not calls


def test_a_mistake_found_by_the_work_is_named_by_its_option(folder):
    words = ["features", folder / "model", "--text", folder / "a.txt", "--length", "16", "--tokens", "64"]
    assert "--layer=99 is not there" in error_of(run(*words, "--layer", "99"), 2)
    assert "--report-to='tensorbord' is no tracker" in error_of(run(*words, "--report-to", "tensorbord"), 2)
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{}")
    words = ["bound", folder / "broken", "--text", folder / "a.txt"]
    assert f"error: MODEL='{folder / 'broken'}' can't be loaded" in error_of(run(*words), 1)
    with pytest.raises(ValueError, match="^teacher="):
        raise run(*words, env={"GEOFLOOR_TRACEBACK": "1"}).exception
    shutil.copytree(folder / "model", folder / "damaged")
    (folder / "damaged" / "model.safetensors").write_bytes(b"damaged")
    assert "file of weights is damaged" in error_of(run("bound", folder / "damaged", "--text", folder / "a.txt"), 1)


def test_names_of_arguments_become_those_of_options():
    names = {"n_tokens": "--tokens", "run_widths": "--run-widths", "width": "--width", "model_kwargs": "--model-kwargs"}
    assert in_options("n_tokens=1 for the width; lower n_tokens, or run_widths=()", names) == (
        "--tokens=1 for the width; lower --tokens, or --run-widths none"
    )
    assert in_options("run_widths=[9, 12]; model=None", names | {"model": "--model"}) == "--run-widths=9,12; no --model"
    text = "set model_kwargs={'dtype': 'bfloat16'} for head_width=3"
    assert in_options(text, names) == """set --model-kwargs '{"dtype": "bfloat16"}' for head_width=3"""


def test_a_name_that_the_hub_can_not_give_ends_at_once(monkeypatch):
    import huggingface_hub

    asked = []

    def model_info(self, name, **options):
        asked.append(options["timeout"])
        raise RuntimeError("Name or\nservice not known")

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", model_info)
    line = error_of(run("plan", "nobody/no-such-model"), 1)
    assert "no folder here" in line
    assert "can't be reached (Name or service not known)" in line
    assert asked == [_cli_inputs._PATIENCE]


def test_ctrl_c_says_how_to_resume(folder, monkeypatch):
    def make_plan(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(_distillation, "make_plan", make_plan)
    result = run("plan", folder / "model", "--text", folder / "a.txt", "--output", folder / "b")
    assert result.exit_code == 130
    assert result.stderr == f"\ngeofloor: stopped; the same command resumes from '{folder / 'b'}'.\n"


# Text


def test_text_is_said_and_read(folder, tmp_path, monkeypatch):
    (tmp_path / "c.jsonl").write_text('{"text": "1 2"}\n{"text": "3"}\n')
    pd.DataFrame({"text": ["4", "5 6"]}).to_parquet(tmp_path / "d.parquet")
    (tmp_path / "e.md").write_text("\N{BYTE ORDER MARK}line\nlonger line\nlast\n", encoding="utf-8")
    monkeypatch.setattr(_cli_inputs, "_PIECE", 12)
    texts, which = find_texts([str(tmp_path / name) for name in ("c.jsonl", "d.parquet", "e.md")], embedded=False)
    assert list(texts) == ["1 2", "3", "4", "5 6", "line\nlonger line\n", "last\n"]
    assert which.startswith("Text: 3 files, ")


def test_without_text_it_is_the_corpus_that_the_teacher_has_not_read(monkeypatch, calls):
    monkeypatch.setattr("geofloor.datasets.load_local_corpus", lambda split: [SimpleNamespace(text=split)])
    result = run("plan", "--dry-run")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("Text: held-out Python source of this machine.\n")
    (path, texts, settings), _ = calls[0]
    assert list(texts) == ["test"]
    assert settings.target_kl == 0.25
    assert find_teacher(str(path), None) == (path, True)
    texts, which = find_texts([], embedded=False)
    assert list(texts) == ["train"]
    assert "give --text" in which


def test_text_that_turns_out_to_be_none_is_a_mistake(tmp_path):
    (tmp_path / "late.txt").write_bytes(b"a " * _cli_inputs._CHECKED + b"\xff")
    texts, _ = find_texts([str(tmp_path / "late.txt")], embedded=False)
    with pytest.raises(Mistake, match="late.txt' is no text in UTF-8"):
        list(texts)


# Plans


def test_plan_prints_its_answer_and_writes_its_report(finished, folder):
    plan = Plan.load(folder / "plan")
    assert str(plan.decision).split(":")[0] in finished.stdout
    assert finished.stdout.startswith("Text: 2 files, ")
    for width in plan.table["width"]:
        assert any(line.split()[:1] == [str(width)] for line in finished.stdout.splitlines())
    assert (folder / "plan" / "report.html").stat().st_size
    assert (folder / "plan" / "forecast.png").read_bytes().startswith(b"\x89PNG")
    assert finished.stdout.endswith(f"Written: {folder / 'plan' / 'report.html'}, {folder / 'plan' / 'forecast.png'}\n")
    assert finished.stderr == ""
    assert plan.settings.target_kl == 0.1


def test_a_tracker_gets_the_students_of_a_plan(finished, folder):
    assert [made.name.split("-")[0] for made in (folder / "runs").iterdir()] == ["DistilledStudent"]


def test_the_same_command_resumes_and_takes_more_runs(finished, folder, command, monkeypatch):
    def train_students(*_, **__):
        raise AssertionError("trained again")

    monkeypatch.setattr(_distillation, "train_students", train_students)
    monkeypatch.setattr(_cli, "_write", lambda *_: [])
    before = Plan.load(folder / "plan").runs
    least = float(Plan.load(folder / "plan").bound.predict([6])[0])
    result = run(*command, "--target-kl", least / 100, "--add-run", f"6={2 * least}", "--check")
    assert result.exit_code == 3, result.output
    assert Plan.load(folder / "plan").runs == before
    line = error_of(run(*command, "--target-kl", "0.1", "--add-run", f"6={least / 100}"), 2)
    assert "--add-run={6: " in line


def test_a_dry_run_measures_nothing(folder, command):
    result = run("cost", *command[1:-1], folder / "none")
    assert result.exit_code == 0, result.output
    assert "Nothing was measured." in result.stdout
    assert not (folder / "none").exists()


@pytest.mark.parametrize(
    ("words", "terminal", "answer", "asked"),
    [([], True, "n", True), (["--yes"], True, "", False), ([], False, "", False), (["--dry-run"], True, "", False)],
)
def test_long_work_is_asked_for_at_a_terminal(folder, calls, monkeypatch, words, terminal, answer, asked):
    monkeypatch.setattr(_cli, "_is_terminal", lambda: terminal)
    monkeypatch.setattr(_cli, "_write", lambda *_: [])
    monkeypatch.setattr("geofloor.planning._console.answer_lines", lambda _: ["the answer"])
    result = run("plan", folder / "model", "--text", folder / "a.txt", *words, input=answer)
    assert ("Continue? [Y/n]" in result.stdout) == asked
    assert ("the answer" in result.stdout) == (words == ["--yes"] or not terminal)
    assert len(calls) == 1


def test_a_bound_serves_forecasts(folder, tmp_path):
    words = ["--tokens", "900", "--length", "16", "--widths", "4,8", "--widths", "12"]
    result = run("bound", folder / "model", "--text", folder / "a.txt", *words, "--output", tmp_path / "bound.json")
    assert result.exit_code == 0, result.output
    bound = BottleneckPredictor.load(tmp_path / "bound.json")
    assert f"width 0 ends at {bound.zero_width_loss_:.3g} nats" in result.stdout
    (tmp_path / "runs.csv").write_text(f"width,loss\n4,{bound.zero_width_loss_ / 1.1}\n")
    words = ["forecast", tmp_path / "runs.csv", "--bound", tmp_path / "bound.json", "--widths", "8"]
    result = run(*words)
    assert result.exit_code == 0, result.output
    expected = LossForecaster(bound=bound).fit([4], [bound.zero_width_loss_ / 1.1]).predict([8])[0]
    assert result.stdout.splitlines()[-1].split()[:2] == ["8", f"{expected:.3f}"]


# Forecasts from runs


def test_forecasts_are_those_of_the_library(folder):
    words = ["forecast", folder / "runs.csv", "--target", "0.25", "--teacher-width", "128", "--students", "principal"]
    result = run(*words, "--zero-width-loss", "1.38", "--width", "64", "--check")
    assert result.exit_code == 0, result.output
    runs = pd.read_csv(folder / "runs.csv")
    forecaster = LossForecaster(teacher_width=128, students="principal", zero_width_loss=1.38)
    forecaster.fit(runs["width"], runs["loss"], n_steps=runs["n_steps"])
    losses, interval = forecaster.predict([64], return_interval=True)
    row = next(line.split() for line in result.stdout.splitlines() if line.split()[:1] == ["64"])
    longer = forecaster.predict([64], n_steps=4000)[0]
    numbers = [f"{each:.3f}" for each in (losses[0], *interval[0], longer)]
    assert [row[1], row[2], row[4], row[5]] == numbers
    assert " ".join(result.stdout.split()).count(" ".join(str(forecaster.decide(64, 0.25)).split())) == 1


def test_check_tells_by_the_exit_code(tmp_path):
    (tmp_path / "runs.csv").write_text("width,loss\n32,0.38\n96,0.05\n")
    words = ["forecast", tmp_path / "runs.csv", "--target", "0.25", "--widths", "48"]
    assert run(*words, "--width", "16", "--check").exit_code == 3
    assert run(*words, "--width", "90", "--check").exit_code == 0


def test_files_of_runs_are_read_alike(folder, tmp_path):
    runs = pd.read_csv(folder / "runs.csv")
    expected = read_runs(folder / "runs.csv")
    assert expected.widths == (32, 96, 32, 96)
    assert expected.n_steps == (1000, 1000, 2000, 2000)
    runs.to_csv(tmp_path / "r.tsv", sep="\t", index=False)
    runs.to_parquet(tmp_path / "r.parquet")
    runs.to_json(tmp_path / "r.jsonl", orient="records", lines=True)
    for name in ("r.tsv", "r.parquet", "r.jsonl"):
        assert read_runs(tmp_path / name) == expected
    (tmp_path / "few.csv").write_text("Width, Loss\n32, 0.5\n")
    assert read_runs(tmp_path / "few.csv") == ((32,), (0.5,), None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "can't be read"),
        ("width,loss\n", "holds no run"),
        ("width;loss\n32;0.5\n", "no column 'width' among 'width;loss'"),
        ("width,loss\n32,0.5\n64,low\n", "holds 'low' as loss of run 2"),
        ("width,loss\n32,-1\n", "holds .*-1.* as loss of run 1"),
        ("width,loss\n32,inf\n", "as loss of run 1"),
        ("width,loss\n32.5,1\n", "holds 32.5 as width of run 1"),
        ("width,loss,n_steps\n32,1,\n64,0.5,100\n", "as n_steps of run 1"),
    ],
)
def test_a_bad_file_of_runs_says_where(tmp_path, content, message):
    (tmp_path / "runs.csv").write_text(content)
    with pytest.raises(Mistake, match=message):
        read_runs(tmp_path / "runs.csv")


def test_warnings_are_one_line(folder, tmp_path):
    (tmp_path / "runs.csv").write_text("width,loss\n32,0.9\n32,3.6\n64,0.3\n")
    result = run("forecast", tmp_path / "runs.csv", "--widths", "48")
    assert result.exit_code == 0
    assert "about T² = 4" in result.stderr
    assert result.stderr.startswith("geofloor: warning: ")
    assert result.stderr.count("\n") == 1


def test_a_list_with_spaces_is_told_apart_from_a_model():
    result = run("plan", "--steps", "10", "20")
    assert result.exit_code == 2
    assert "MODEL '20' is a number; put commas between several, as in --steps 150,300,600." in result.stderr
