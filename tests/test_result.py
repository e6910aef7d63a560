"""What a person sees and can do after a training: one sentence first, a menu, a page to forward."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from markupsafe import Markup, escape
from msgspec.structs import replace

from advisor.commands import training
from advisor.commands.after_run import after_run, result_options
from advisor.ground.errors import InputError, TooMuchLost
from advisor.ground.terminal import print_message
from advisor.record.judge import run_verdict
from advisor.record.run import FinishedRun, RunRecord
from advisor.render.report import model_card, report_page
from advisor.render.run import summary_lines
from tests.wizard.scripted import ScriptedUi

PLAN = """\
name: shop
model: {model}
data: {{path: rows.jsonl}}
stages:
  - {{name: sft, objective: sft, update: lora, epochs: 2}}
"""
STAGE = {
    "name": "sft", "objective": "sft", "update": "lora", "status": "done", "folder": "stages/sft",
    "checks": [
        {"name": "saved-model-is-the-trained-one", "ok": True, "text": "differ by at most 0"},
        {"name": "the-same-without-peft", "ok": True, "text": "as W + BA"},
        {"name": "answers-end-by-themselves", "ok": False, "text": "0 of 16 answers end"},
    ],
}  # fmt: skip


def styled(*scores: float) -> dict:
    samples = [
        {
            "prompt": "Where?",
            "base": "No.",
            "tuned": "Yes.",
            "score_before": 0.1,
            "score_after": score,
        }
        for score in scores
    ]
    return {"samples": samples, "sample_metric": "rouge_l", "rows": len(scores)}


def counted(name: str, before: float | None, after: float, rows: int, **more: object) -> dict:
    return {"metrics": {name: {"before": before, "after": after, "rows": rows}}, **more}


def record(evaluation: dict | None, *, options: dict | None = None, **run: object) -> RunRecord:
    given = {"options": options or {}, "model": "org/base"}
    return RunRecord.from_dict({
        "schema_version": 1, "name": "shop", "status": "done", "model": "org/base",
        "stages": [{**STAGE, "evaluation": evaluation, "data": {"holdout_rows": 4}}],
        "resolved": {"sft": given}, **run,
    })  # fmt: skip


def test_other_codes_than_those_of_the_data_are_said():
    """An answer may be in style with the wrong code in it."""
    found = styled(0.5, 0.9)
    for sample, code in zip(found["samples"], ("[SWAP]", "[CHECK_LINE]"), strict=True):
        sample |= {"expected": "[CHECK_LINE] for T-12", "tuned": f"{code} for T-12"}
    plain = run_verdict(record(found), run="runs/shop").plain
    assert plain.text.endswith(
        "Facts and codes are not checked: 1 of these has other ones than the data."
    )


@pytest.mark.parametrize(
    ("expected", "score", "good"),
    [
        ("Yes, we do ship the mirror. Bye", 0.55, 0),
        ("Yes, we do ship the mirror. Bye", 0.8, 1),
        ("Do you ship the mirror?", 1, 1),
    ],
)
def test_an_answer_that_repeats_the_question_is_not_in_style(expected, score, good):
    """Its words are those of the answer, too, and the style is not."""
    found = styled(score)
    found["samples"][0] |= {"prompt": "Do you ship the mirror?", "expected": expected}
    assert run_verdict(record(found), run="runs/shop").plain.good == good


@pytest.mark.parametrize(
    ("evaluation", "said"),
    [
        (styled(0.24, 0.25, 0.9), "Of 3 unseen questions 2 are now answered in your style, before none."),
        (styled(0.0), "Of 1 unseen question none is answered in your style yet."),
        (counted("exact_match", 0.25, 0.75, 4), "Of 4 unseen questions 3 are now answered exactly as in your data, before 1."),
        (counted("json_validity", 0.0, 1.0, 8), "Of 8 unseen questions 8 are now answered with valid JSON, before none."),
        (counted("accuracy", 0.3, 0.9, 50), "Of 50 unseen texts 45 are now put into the right class; always naming the most common one gets 15."),
        (counted("pair accuracy", 0.5, 0.75, 64), "Of 64 unseen pairs of answers 48 are now ranked as in your data, before 32."),
        ({"feedback_rows": 40, "moved_as_judged": 0.775}, "Of 40 unseen answers with feedback 31 are now likelier if liked, or rarer if not."),
        ({"metrics": {**counted("exact_match", 0.0, 0.0, 8)["metrics"], **counted("reward", 0.125, 0.5, 32)["metrics"]}}, "Answers to 32 unseen prompts now get a reward of 0.5 on average, before 0.125."),
        ({"rows": 25, "perplexity_before": 162.4, "perplexity_after": 5.94}, "In 25 unseen texts the next word is now a choice among about 5.9, before 162."),
        (None, "It is trained; nothing was compared, so whether it learned is open."),
    ],
)  # fmt: skip
def test_the_result_is_one_plain_sentence(evaluation, said):
    """By what the task is about; where nothing can be counted, by what was measured."""
    verdict = run_verdict(record(evaluation), run="runs/shop")
    assert verdict.plain.text == said
    assert verdict.to_dict()["plain"]["text"] == said  # run.json has it, too


def test_rows_that_were_trained_on_are_not_called_unseen():
    """And several tasks have a sentence each."""
    seen = record(styled(0.5)).to_dict()
    seen["stages"][0]["data"]["holdout_rows"] = 0
    found = run_verdict(RunRecord.from_dict(seen), run="runs/shop")
    assert found.plain.text.startswith("Of 1 question 1 is now answered in your style")
    stages = [{**seen["stages"][0], "name": f"sft-{task}", "task": task} for task in ("hr", "law")]
    both = run_verdict(RunRecord.from_dict({**seen, "stages": stages}), run="runs/shop")
    assert re.fullmatch(r"hr: Of 1 .*\. law: Of 1 .*\.", both.plain.text)


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A finished run of a person whose home is known, with a model in it."""
    home = tmp_path / "home" / "alice+work (1)"  # nothing in it is a pattern
    folder = home / "work" / "my runs" / "shop"
    (folder / "stages" / "sft").mkdir(parents=True)
    (folder / "plan.yaml").write_text(PLAN.format(model=home / "models" / "base"))
    (folder / "report.html").write_text("x")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    losses = {"holdout_loss_before": 4, "holdout_loss_after": 2, "holdout_loss_interval": [-3, -1]}
    given = record({**styled(0.5, 0.1), **losses}, model=str(home / "models/base"))
    inputs = {f"data {home}/rows.jsonl": {"rows.jsonl": {"bytes": 1, "sha256": "a"}}}
    return FinishedRun(
        folder=folder, record=RunRecord.from_dict({**given.to_dict(), "input_files": inputs})
    )


def test_a_report_names_no_home_folder(shop, monkeypatch, tmp_path):
    """Neither its plan, its lines to paste nor its model card do; its title says what it is of."""
    plan = (shop.folder / "plan.yaml").read_text() + f"data: '{Path.home()}/rows.jsonl'"
    monkeypatch.setattr(sys, "executable", os.path.expanduser("~/venv/bin/python3"))
    for place in (Path.cwd(), Path.cwd().parent / "models"):
        place.mkdir(exist_ok=True)
        monkeypatch.chdir(place)
        page = report_page(shop.record, folder=shop.folder, plan_text=plan, metrics=())
        assert ("alice" in page, "~/models/base" in page) == (False, True)
        assert escape("data: '~/rows.jsonl'") in page
        assert escape("~/'venv/bin/python3' ") + Markup('<span class="whole">-c</span>') in page
        assert escape(f"advise chat {shlex.quote(os.path.relpath(shop.folder))}") in page
        assert re.search("<title>(.*)</title>", page)[1] == "base on rows.jsonl: better"
    assert "alice" not in model_card(shop.record, shop.record.stages[0], shop.folder)


def test_a_report_begins_with_the_result_and_folds_what_is_for_specialists(shop):
    """Sentence, answers, verdict, numbers; no script unfolds the rest."""
    page = report_page(shop.record, folder=shop.folder, plan_text="epochs: 2", metrics=())
    parts = ("Of 2 unseen questions 1 is", 'class="answers"', "<dt>Task</dt>", "Checked: loads, merges.",
             "0 of 16 answers end", "Stage sft", "<details>", "For specialists", "epochs: 2")  # fmt: skip
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert page.count("<details>") == page.count("</details>") == 3


# --------------------------------------------------------------------------- the menu


def test_the_last_lines_say_what_the_menu_offers_elsewhere(shop, approved):
    """Where nobody can be asked, they are lines to paste; before a menu there are none."""
    lines = summary_lines(shop)
    (shop.folder / "stages/sft/checkpoints/1").mkdir(parents=True)
    (shop.folder / "stages/sft/checkpoints/1/moments").write_bytes(bytes(2**21))
    approved([lines, summary_lines(shop), summary_lines(shop, has_menu=True)])


def told(run):
    """What the menu says of each choice, and its words to train with."""
    return [
        [one.label, one.help, one.value if isinstance(one.value, str) else None]
        for one in result_options(run)
    ]


def test_each_choice_does_what_it_says(shop, monkeypatch, approved):
    """What fails or is stopped leads back; a further training is what the menu is about then."""
    called = []
    monkeypatch.setattr("webbrowser.open", lambda address: called.append(address) or True)
    again = FinishedRun(folder=shop.folder.with_name("again"), record=shop.record)

    def train(words):
        called.append(words)
        return again

    def call(*words):
        called.append(words)
        raise KeyboardInterrupt if words[0] == "export" else InputError("no room")

    chosen = ("Talk to it", "Open the report", "Put it into Ollama", "Train longer", "Quit")
    ui = ScriptedUi(*chosen)
    after_run(shop, ui, train=train, call=call)
    assert ui.offered[0] == [*chosen]
    here, address = str(shop.folder.parent), shop.folder.parent.as_uri()
    words = ([one] if isinstance(one, str) else one for one in called)
    approved([
        ui.said,
        [[word.replace(address, "RUNS").replace(here, "RUNS") for word in one] for one in words],
    ])  # fmt: skip


def test_only_a_person_at_a_terminal_is_asked(shop, monkeypatch, capsys):
    """Not a program, nor who has nothing to do something with, nor where another menu follows."""
    ui = ScriptedUi(*["Quit"] * 9)
    monkeypatch.setattr("advisor.wizard.prompts.terminal_ui", lambda _: ui)
    monkeypatch.setattr(training, "is_terminal", lambda _: False)
    assert training.show_run(shop) == 0
    monkeypatch.setattr(training, "is_terminal", lambda _: True)
    failed = RunRecord.from_dict({**shop.record.to_dict(), "status": "failed"})
    for run, options in (
        (shop, {"as_json": True}),
        (shop, {"offers": False}),
        (replace(shop, node=1), {}),
        (replace(shop, record=failed), {}),
        (replace(shop, errors=(TooMuchLost("own"),)), {}),
    ):
        training.show_run(run, **options)
    assert ui.asked == []
    capsys.readouterr()
    assert (training.show_run(shop), ui.asked) == (0, ["What now?"])
    assert "advise" not in capsys.readouterr().out  # the menu says it when it is left
    assert "Talk to it:  advise chat 'my runs/shop'" in ui.said


def test_the_training_that_the_verdict_advises_is_offered(shop, monkeypatch, approved):
    """With its words, and done as its line says; the line itself is not printed then."""
    worse = {"holdout_loss_before": 2, "holdout_loss_after": 4, "holdout_loss_interval": [1, 3]}
    stage = {**shop.record.to_dict()["stages"][0], "evaluation": worse}
    run = replace(shop, record=RunRecord.from_dict({**shop.record.to_dict(), "stages": [stage]}))
    plan = PLAN.format(model="m").replace("epochs: 2", "learning_rate: 3e-4")
    (shop.folder / "plan.yaml").write_text(plan)
    trained = []
    monkeypatch.setattr(training, "train", lambda *given: trained.append(given) or run)
    after_run(run, ScriptedUi("Train again", "Quit"), train=training._train_again, call=None)
    approved([told(run), summary_lines(run, has_menu=True), trained])


@pytest.mark.parametrize("has_ollama", [True, False])
def test_ollama_gets_the_exported_model(shop, monkeypatch, has_ollama):
    """Once; where it is not installed, the line that makes it there is named."""
    ran = []
    monkeypatch.setattr("shutil.which", lambda _: "/bin/ollama" if has_ollama else None)
    done = subprocess.CompletedProcess([], 0)
    monkeypatch.setattr("subprocess.run", lambda words, **_: ran.append(words) or done)

    def export(*words):
        assert words == ("export", str(shop.folder), "--to", "ollama")
        (shop.folder / "export/ollama").mkdir(parents=True)
        (shop.folder / "export/ollama/Modelfile").write_text("x")

    ui = ScriptedUi("Put it into Ollama", "Put it into Ollama", "Quit")
    after_run(shop, ui, train=lambda *_: None, call=export)
    line = "ollama create shop -f 'my runs/shop/export/ollama/Modelfile'"
    made = ["ollama", "create", "shop", "-f", str(shop.folder / "export/ollama/Modelfile")]
    assert (ran, ui.said.count(f"  {line}")) == ([made] * 2 * has_ollama, 2 * (not has_ollama))


def test_after_a_trial_the_whole_plan_comes_first(shop, approved):
    """As the verdict says; it is not trained longer then. Ctrl-C leaves."""
    trial = RunRecord.from_dict({**shop.record.to_dict(), "max_steps": 3})
    run = FinishedRun(folder=shop.folder, record=trial)
    approved(told(run))
    ui = ScriptedUi(None)
    after_run(run, ui, train=lambda *_: None, call=lambda *_: None)
    assert len(ui.asked) == 1


# --------------------------------------------------------------------------- between words


def test_a_list_of_what_is_allowed_is_broken_between_words(monkeypatch, capsys):
    """An indented line to paste is not."""
    monkeypatch.setattr("advisor.ground.terminal.is_terminal", lambda _: True)
    monkeypatch.setenv("COLUMNS", "40")
    allowed = f"  tasks: {', '.join(['structured_output'] * 5)}"
    paste = f"  pip install {'a-package ' * 5}"
    print_message(f"{allowed}\n{paste}")
    *lines, last = capsys.readouterr().err.splitlines()
    assert last == paste
    assert max(map(len, lines)) <= 40
    assert ({line[:2] for line in lines}, " ".join(lines).split()) == ({"  "}, allowed.split())


def test_a_chat_breaks_answers_between_words(monkeypatch, capsys):
    """As they are written, piece by piece, behind the name of who answers."""
    from trainers.tools import chat

    monkeypatch.setattr(chat, "get_terminal_size", lambda: os.terminal_size((20, 10)))
    put = chat.WordPrinter(len("[sft] "))
    for piece in ("The library ", "opens at ", "nine.\nIt closes at ", "five."):
        put(piece)
    put("", stream_end=True)
    assert capsys.readouterr().out == "The library \nopens at nine.\nIt closes at five.\n"
