"""Text of others acts on no terminal and no page, and a secret in it is refused, and said by nobody again."""

import io
import json
import logging
import re
import sys
import time
import unicodedata
from typing import Any

import pytest
from rich.console import Console

from advisor.commands.output import console, print_json, put, say
from advisor.ground.errors import InputError
from advisor.ground.terminal import (
    ShownStream,
    find_secrets,
    is_secret_key,
    json_shown,
    mask_secrets,
    show_streams,
    shown,
)
from advisor.render.data import visible
from advisor.render.report import html_text
from advisor.render.terminal import plain
from tests.conftest import ROOT
from tests.render.test_report import RECORD, card_of, page_of

# A window's title, colour, a link with another target, C1, DEL, marks of direction, no width, lines.
EVIL = (
    "a\x1b]0;own\x07\x1b[31m\x1b]8;;http://e.x\x1b\\b\x9b2J\x7f\u202ec\u2066d\u200be\u2028f\x85g\r"
    "\ufeffhi"
)
ESCAPED = json.dumps(EVIL)


def acting(text: str) -> set[str]:
    """The characters of a text that are not there to be read."""
    kinds = ("Cc", "Cf", "Cs", "Cn", "Zl", "Zp")
    return {sign for sign in text if sign not in "\n\t" and unicodedata.category(sign) in kinds}


def test_what_acts_is_escaped_and_what_is_read_stays():
    """Letters of every script, emoji and their joiners, wide spaces, lines and tabs stay."""
    assert not acting(shown(EVIL + "\udcff\U000e0041"))
    assert shown("\x1b[2J\x9b\x7f\u202e") == r"\x1b[2J\x9b\x7f\u202e"
    for text in ("naïve 日本語　نمی\u200cخواهم 👨\u200d👩\u200d👧 – a\u00a0b\n\tc", "", "plain"):
        assert shown(text) == text
    assert shown("pay\u200dpal") == r"pay\u200dpal"


@pytest.mark.parametrize(
    "text", ["می\u200cخواهم", "👨\u200d👩\u200d👧", "全角\u3000空白", "prix\xa0: 5"]
)
def test_pages_spell_other_scripts_as_a_terminal_does(text):
    console = Console(file=io.StringIO(), width=80)
    assert html_text(text) == visible(text) == plain(text, console) == text
    assert not acting(html_text(EVIL) + visible(EVIL) + plain(EVIL, console))


def test_json_says_the_same_in_its_own_escapes():
    """The document reads back as the same values; nothing in it acts on a terminal."""
    document = {EVIL: [EVIL, "\U000e0041", "ü"]}
    text = json_shown(json.dumps(document, ensure_ascii=False, indent=1))
    assert (acting(text), json.loads(text), "ü" in text) == (set(), document, True)


def test_every_way_to_a_terminal_shows_it(capsys, monkeypatch):
    """Our own messages, what libraries print and log, and text in rich's markup."""
    monkeypatch.setenv("FORCE_COLOR", "1")
    logger = logging.getLogger("a library")  # that was loaded before
    monkeypatch.setattr(logger, "handlers", [logging.StreamHandler()])
    show_streams()
    say(EVIL)
    put(EVIL)
    print_json([EVIL])
    print(EVIL)
    print(EVIL, file=sys.stderr)
    logger.error("%s", EVIL)
    sys.stderr.writelines([EVIL])
    say(InputError(EVIL, EVIL, EVIL).text())
    found = capsys.readouterr()
    assert (not acting(found.out + found.err), found.err.count(r"\x1b]0;own\x07")) == (True, 7)
    show_streams()
    console().print(f"[red]{EVIL}[link=http://e.x]x[/link]:smile:", style="bold")
    out, _ = capsys.readouterr()
    own = re.sub(r"\x1b\[[0-9;]*m", "", out)
    assert own != out, "our own colours survive"
    assert not acting(own)
    assert "[red]" in own
    assert "[link=http://e.x]x[/link]:smile:" in own.replace("\n", "")


def test_progress_bars_of_libraries_still_move():
    """A bar's own way back to the start of its line, and nothing else of what it shows."""
    below = io.StringIO()
    for text in ("\r", "\r 10%|x", "\n\n", "\x1b[A\x1b[A", "\rbad \x1b[31m\r"):
        ShownStream(below).write(text)
    assert below.getvalue() == "\r\r 10%|x\n\n\x1b[A\x1b[A\rbad \\x1b[31m\\r"


def test_nothing_prints_past_it():
    """Every program of ours shows its streams; consoles and click's printing stand in one place."""
    sources = {
        path.relative_to(ROOT).as_posix(): path.read_text("utf-8")
        for folder in ("advisor", "trainers")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "__main__.py" or folder == "trainers"  # advisor's calls cli.main
    }
    programs = [name for name, text in sources.items() if '== "__main__"' in text]
    assert len(programs) >= 6
    shows = re.compile(r"show_streams\(\)|= command\(")  # which shows them
    assert "show_streams()" in sources["trainers/tools/__init__.py"]
    programs.remove("advisor/data/templates/worker.py")  # its parent alone reads what it says
    assert [name for name in programs if not shows.search(sources[name])] == []
    for call, places in (("click.echo(", ["advisor/commands/output.py"]), ("Console(", [])):
        pattern = rf"\b{re.escape(call)}"
        assert [name for name, text in sources.items() if re.search(pattern, text)] == places


ROWS = '{"prompt": "a", "completion": "b"}\n' * 12
NAME = EVIL.replace("/", "")
LLAMA = {
    "model_type": "llama", "num_attention_heads": 2, "intermediate_size": 8, "hidden_size": 8,
    "num_hidden_layers": 8, "vocab_size": 8,
}  # fmt: skip


def plan(*, model: str = "m", stage: str = "", more: str = "") -> dict[str, str]:
    stages = f"stages: [{{name: sft, objective: sft, update: lora{stage}}}]"
    text = f"version: 1\nname: x\nmodel: {model}\ndata: {{path: d.jsonl}}\n{stages}\n{more}\n"
    return {"p.yaml": text, "d.jsonl": ROWS}


def data(row: str) -> dict[str, str]:
    return {"d.jsonl": f"{row}\n" * 12}


def model(key: str) -> dict[str, str]:
    return {"m/config.json": json.dumps({**LLAMA, key: EVIL})}


ANSWERS, CHECK = "--json --answers a.yaml", "check d.jsonl"
ASKED = "--task qa --gpu none"
INPUTS = {  # files, with EVIL in place of the quoted text, and what is typed behind `advise`
    "answers: a value": ({"a.yaml": "task: EVIL"}, ANSWERS),
    "answers: a key": ({"a.yaml": "EVIL: 1"}, ANSWERS),
    "answers: a model": ({"a.yaml": "task: qa\ngpu: none\nmodel: EVIL"}, ANSWERS),
    "answers: a task name": (
        {"a.yaml": "task: multi_department\ntasks: {EVIL: x.jsonl}"}, ANSWERS,
    ),
    "plan: a key": (plan(more="EVIL: 1"), "estimate p.yaml"),
    "plan: a model": (plan(model="EVIL"), "estimate p.yaml"),
    "plan: a method's value": (plan(stage=", target_modules: EVIL, rank: EVIL"), "run p.yaml"),
    "plan: a value": (plan(more="launch: {device: EVIL}"), "run p.yaml"),
    "plan: a --set": (plan(), "run p.yaml --set EVIL=EVIL"),
    "rules: a name": ({"r.yaml": "rules: {EVIL: [{id: EVIL}]}"}, "rules --rules r.yaml"),
    "rules: unknown": ({}, "rules EVIL"),
    "data: a value": (data('{"prompt": EVIL, "completion": EVIL}'), CHECK),
    "data: a column": (data('{"prompt": "a", "completion": "b", EVIL: 1}'), CHECK),
    "data: columns, none known": (data("{EVIL: EVIL}"), CHECK),
    "data: a role": (data('{"messages": [{"role": EVIL, "content": "x"}]}'), f"{CHECK} --json"),
    "data: as json": (data('{"prompt": EVIL, EVIL: EVIL}'), f"{CHECK} --json"),
    "data: a row": (data('{"prompt": EVIL, "completion": EVIL}'), f"{CHECK} --show-row 1"),
    "data: --map": (data('{"a": "b"}'), f"{CHECK} --map EVIL=EVIL"),
    "a file's name": ({NAME: ROWS}, "check NAME"),
    "a file that is not there": ({}, "check EVIL"),
    "a model's config": (model("torch_dtype"), f"{ASKED} --model ./m"),
    "a model's type": (model("model_type"), f"{ASKED} --model ./m"),
    "run.json": ({"r/run.json": '{"schema_version": EVIL, EVIL: 1}'}, "chat r"),
    "a command": ({}, "EVIL"),
    "an option": ({}, "--EVIL"),
    "an option's value": ({}, "--json --task qa --gpu EVIL"),
    "a choice": ({}, f"--json {ASKED} --choose EVIL"),
    "a model's name": ({}, f"{ASKED} --model EVIL"),
    "a spec": ({}, "estimate --model EVIL"),
}  # fmt: skip
TRAINS = {"data: a row", "run.json"}  # with a model's tokenizer, and in the chat


@pytest.mark.parametrize(
    ("files", "line"),
    [
        pytest.param(*case, id=name, marks=pytest.mark.train if name in TRAINS else ())
        for name, case in INPUTS.items()
    ],
)
def test_no_input_acts_on_the_terminal(call, tmp_path, files, line):
    """Whatever a person is given to use, from a file's name to a rule: its text is only shown."""
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text.replace("EVIL", ESCAPED), "utf-8")
    words = [word.replace("EVIL", EVIL).replace("NAME", NAME) for word in line.split()]
    code, out, err = call(*words)
    assert code in (0, 2, 3, 4)
    assert "own" in out + err
    assert not acting(out + err)
    written = [path for path in tmp_path.rglob("*") if path.suffix in (".html", ".md")]
    assert not any(acting(path.read_text("utf-8")) for path in written)


def test_a_name_that_is_not_unicode_is_refused(call):
    """No plan could name the file; the message shows the byte, and does not fail itself."""
    code, out, err = call("--json", *ASKED.split(), "--data", "a\udcff.jsonl")
    assert (code, bool(json.loads(out)["error"])) == (2, True)
    assert r"--data a\udcff.jsonl: the name is not UTF-8" in err


def with_evil(value: object, key: str = "") -> object:
    """The plain value with the text appended to every text in it, keys of open maps included."""
    if isinstance(value, dict):
        return {name: with_evil(part, name) for name, part in value.items()}
    if isinstance(value, list):
        return [with_evil(part, key) for part in value]
    closed = ("status", "objective", "update", "counter", "quantization", "folder")
    return f"{value}{EVIL}|<b>" if isinstance(value, str) and key not in closed else value


def test_reports_and_cards_show_it(tmp_path):
    """Every text of run.json: in the report, the model card, and the lines after the run."""
    document: Any = with_evil(RECORD)
    stage = document["stages"][0]
    for name in (EVIL, "b"):  # keys of open maps
        stage["evaluation"]["metrics"][name] = {"before": 0.1, "after": 0.2}
        document["versions"][name] = name
    resolved = {"model": EVIL + "/x", "options": {EVIL: EVIL}, "trl": {"optim": EVIL}}
    document["resolved"] = {stage["name"]: resolved}
    page = page_of(document, tmp_path / NAME, plan_text=f"a: 1  # {EVIL}\n")
    card = card_of(document)
    assert not acting(page + card)
    assert ("<b>" in page + card, r"\x1b" in page, r"\x1b" in card) == (False, True, True)
    assert card.count("---") == 3 + card.count("| --- | --- |") * 2 - 1


def test_a_very_long_value_is_cut_where_it_is_said():
    """Its beginning and its end stand there, and how much is left out; a secret is masked first."""
    value = "x" * 2990 + "hf_" + "aB3dE5fG7h" * 4 + "y" * 100_000
    text = InputError(f"unknown GPU '{value}'", hint="check the name").text()
    assert len(text) < 4200
    assert "characters left out] yyy" in text
    assert text.endswith("check the name")
    assert "hf_aB3dE" not in text


# Made up, in the forms that services give out.
SECRETS = {
    "HF_TOKEN": "hf_" + "aB3" * 11 + "d",
    "OPENAI_API_KEY": "sk-proj-" + "x1Y2" * 8,
    "GITHUB_TOKEN": "ghp_" + "a1B2" * 9,
    "AWS_ACCESS_KEY_ID": "AKIA" + "ABCD1234" * 2,
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "under the name": "https://user:pa55word@host.example/x",
}
PLAN = """version: 1
name: x
model: m
data: {{path: d.jsonl}}
stages: [{{name: sft, objective: sft, update: lora{stage}}}]
{more}"""


def test_keys_of_secrets_are_told_from_keys_with_tokens_in_them():
    """Texts of a tokenizer and counts of tokens are no secrets."""
    secret = {"hub_token", "token", "api_key", "WANDB_API_KEY", "password", "aws_secret_key"}
    no = {"eos_token", "pad_token", "max_new_tokens", "tokens", "keep", "tokenizer", "key"}
    assert {name for name in secret | no if is_secret_key(name)} == secret


def test_what_only_looks_like_a_secret_is_left_alone():
    """A commit, a folder of the hub's cache, names of tasks and columns, a switch."""
    commit = SECRETS["WANDB_API_KEY"]
    harmless = {
        "revision": commit,
        "model": f"/cache/models--a--b/snapshots/{commit}",
        "tasks": {"password": "resets.jsonl"},
        "data": {"mapping": {"prompt": "token"}},
        "names": ["sk-finetune-2026-customer-support-v2", "hf_short", "https://host/a@b:c"],
        "token": True,
        "password": None,
    }
    assert list(find_secrets(harmless)) == []


PLACES = {  # what stands in the stage and in the plan, and what is typed
    "plan": ("", "model_note: {}", "run p.yaml"),
    "trl": (", trl: {{run_name: '{}'}}", "", "run p.yaml"),
    "set": ("", "", "run p.yaml --set stages.sft.trl.run_name={}"),
    "answers": ("", "", "--json --answers a.yaml"),
    "flag": ("", "", "--json --task qa --model {}"),
}


@pytest.mark.parametrize(("variable", "secret"), SECRETS.items(), ids=SECRETS)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_refused_and_not_repeated(call, tmp_path, place, variable, secret):
    """Exit code 2, where it stands, which variable of the environment it belongs into."""
    stage, more, line = (text.format(secret) for text in PLACES[place])
    (tmp_path / "d.jsonl").write_text(ROWS)
    (tmp_path / "p.yaml").write_text(PLAN.format(stage=stage, more=more))
    (tmp_path / "a.yaml").write_text(f"task: qa\nmodel: {secret}\n")
    code, out, err = call(*line.split())
    assert (code, "looks like a secret" in err, variable in err) == (2, True, True)
    assert [words for words in (secret, "pa55word") if words in out + err] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "line", ["run p.yaml", "estimate p.yaml", "run p.yaml --set stages.sft.trl.hub_token=hunter2"]
)
def test_a_secret_is_known_by_its_key_too(call, tmp_path, line):
    """Whatever `hub_token` holds: refused before anything is written, and not repeated."""
    (tmp_path / "d.jsonl").write_text(ROWS)
    (tmp_path / "p.yaml").write_text(PLAN.format(stage=", trl: {hub_token: hunter2}", more=""))
    code, out, err = call(*line.split())
    assert (code, "HF_TOKEN" in err, "hunter2" in out + err) == (2, True, False)


@pytest.mark.parametrize(
    "secret",  # 40 hexadecimal digits are, as a rule, a commit
    [secret for variable, secret in SECRETS.items() if variable != "WANDB_API_KEY"],
)
def test_messages_mask_what_they_quote(secret):
    """An error of a library or of ours that holds a secret is shown without it."""
    text = InputError(f"cannot reach {secret} now", hint=json.dumps({"a": secret})).text()
    assert (secret in text, "***" in text) == (False, True)
    assert mask_secrets("https://user:pa55word@host/x") == "https://***@host/x"
    assert mask_secrets("a@b, http://host:80/x, sk-short") == "a@b, http://host:80/x, sk-short"


@pytest.mark.parametrize("piece", ["sk-", "sk-a", "eyJ-", "://a:", "-----BEGIN ", "a_"])
def test_no_text_takes_long_to_look_through(piece):
    """A long value made for it costs no more than its length."""
    text, began_s = piece * (200_000 // len(piece)), time.process_time()
    assert (mask_secrets(text), not list(find_secrets({text: text}))) == (text, True)
    assert time.process_time() - began_s < 1
