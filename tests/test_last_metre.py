"""The last step to a person: what they type is understood, and what is printed can be used."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from urllib.request import pathname2url

import pytest

from advisor import advise
from advisor.cli import COMMANDS
from advisor.commands.output import console
from advisor.data.read.source import typed_path
from advisor.ground import resources as program
from advisor.plan.read import read_plan
from advisor.probe.catalogue import catalogue_gpus
from advisor.render.terminal import print_advice, print_whole_answer
from advisor.render.words import without_flags
from tests.conftest import PAIRS, ROOT
from tests.test_docs import SETUP
from tests.wizard.scripted import ScriptedUi, answers_of, known

ASKED = "--json --task customer_service --gpu none"
STATED = (
    "--task customer_service --data-kind paired --data-rows 100000 --data-tokens 40000000"
    " --model Qwen/Qwen3-8B"
)


@pytest.fixture
def document(call):
    """Exit code and the JSON document that a line behind `advise` prints."""

    def asked(line):
        code, out, _ = call(*shlex.split(line))
        return code, json.loads(out)

    return asked


@pytest.mark.parametrize(
    ("typed", "facts"),
    {
        "--data-rows 100k": {"data_rows": 100_000},
        "--data-rows 100,000": {"data_rows": 100_000},
        "--data-rows 1e3": {"data_rows": 1000},
        "--budget 50": {"budget_usd": 50},
        "--budget '$1,000, 8 h'": {"budget_usd": 1000, "budget_hours": 8},
        "--budget 20usd --budget 6hours": {"budget_usd": 20, "budget_hours": 6},
        "--budget hours=2k": {"budget_hours": 2000},
        "--budget '30 dollars, 2 days'": {"budget_usd": 30, "budget_hours": 48},
        "--budget '1 week'": {"budget_hours": 168},
        "--budget '1,000 days'": {"budget_hours": 24_000},
        "--data-rows 5.000": "5.000 can be read in two ways: write 5000 or 5",
        "--data-rows many": "many is not a number",
        "--data-rows -5": "--data-rows is -5",
        "--budget lots": "one of low, medium, high, or limits: '$20, 6 h'",
        "--budget=-5": "--budget -5: no limit in dollars or hours",
        "--budget 5eur": "eur is not known here, prices of GPUs are in US dollars",
    }.items(),
)
def test_numbers_and_limits_are_read_as_people_type_them(document, typed, facts):
    """What can mean two things is refused."""
    code, found = document(f"{ASKED} {typed}")
    if isinstance(facts, str):
        assert (code, facts in str(found["error"])) == (2, True)
    else:
        assert facts.items() <= found["situation"]["facts"].items()


@pytest.mark.extra("gguf")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("advise ex", "plain,export"),
        ("advise run --dry", "plain,--dry-run"),
        ("advise --task custo", "plain,customer_service"),
        ("advise check some", "file,some"),
        ("advise rules document/scenario-5", "plain,document/scenario-5"),
        ("advise export --to gg", "plain,gguf"),
        ("advise --choose sft+q", "plain,sft+qlora"),
    ],
)
def test_tab_completes(call, monkeypatch, words, offered):
    """By click's own way, and files where a file is meant."""
    monkeypatch.setenv("_ADVISE_COMPLETE", "bash_complete")
    monkeypatch.setenv("COMP_WORDS", words)
    monkeypatch.setenv("COMP_CWORD", str(len(words.split()) - 1))
    assert call()[:2] == (0, f"{offered}\n")


@pytest.mark.parametrize("name", ["dpo", "lora", "rag", "document/scenario-5"])
def test_the_page_of_a_rule_or_a_method_fits_the_screen(call, monkeypatch, name):
    """Texts fold beside their labels, settings have their values, and sources are whole."""
    monkeypatch.setenv("COLUMNS", "80")
    _, out, _ = call("rules", name)
    assert all(len(line) <= 80 for line in out.splitlines() if "https://" not in line)
    assert all(line == line.rstrip() for line in out.splitlines())
    if name == "dpo":
        assert "       set by  " in out
        assert "learning_rate: 5e-07; usual for 7B to 32B (dpo/lr-full-7b)" in out
        assert "\nRead more\n" in out
        assert "did you mean 'lora'" in call("rules", "lor")[2]


@pytest.mark.parametrize("typed", ["8gb", "laptop 8 gb"])
def test_a_card_of_which_the_memory_alone_is_known(approved, call, typed):
    """It may drive the display, is as fast as the slowest of its size, and is one's own."""
    approved(call(*shlex.split(f"{STATED} --gpu '{typed}'"))[1])
    # No card of this size is made for homes.
    assert "Cost     Not known" in call(*shlex.split(f"{STATED} --gpu 80gb"))[1]
    assert "no price is known" in call(*shlex.split(f"{STATED} --gpu 'foo 8gb'"))[1]


# --------------------------------------------------------------------------- which card to rent


@pytest.mark.parametrize("limits", ["usd=50,hours=8", "usd=50", "hours=8", "usd=2,hours=0.5"])
def test_the_cheapest_cards_within_the_limits_are_named(approved, document, limits):
    """Three at most, the cheapest first; where none keeps the limits, what the nearest break."""
    _, found = document(f"--json {STATED} --gpu unknown --budget {limits}")
    rent = found["rent"]
    approved(
        [rent, found["recommendation"], found["flips"], found["warnings"], found["next_steps"]]
    )
    assert len(rent) == 3
    wanted = dict(pair.split("=") for pair in limits.split(","))
    for way in rent:
        assert way["low_hours"] < way["hours"] < way["high_hours"]
        assert way["usd"] == pytest.approx(way["hours"] * way["usd_per_h"], rel=0.02)
        for name, limit in wanted.items():
            assert way["within"][name] == (way[name] <= float(limit))
    if limits == "usd=2,hours=0.5":
        assert not any(all(way["within"].values()) for way in rent)
    else:
        assert all(all(way["within"].values()) for way in rent)
        assert [way["usd"] for way in rent] == sorted(way["usd"] for way in rent)


def test_a_limit_without_a_card_does_not_fall_to_the_processor(approved, document, call):
    """Dollars are for renting; with a card, or without a limit, nothing is to be rented."""
    code, found = document(f"--json {STATED} --budget 50,8h")
    pages = [
        call(*shlex.split(f"{STATED} --budget 50,8h{more}"))[1]
        for more in ("", " --choose sft+qlora --force")
    ]
    approved([code, found["hardware"]["kind"], found["rent"], found["warnings"], *pages])
    for given in ("--budget 50 --gpu H100", "--budget 50 --gpu none", ""):
        assert document(f"--json {STATED} {given}")[1]["rent"] is None


def test_the_plan_is_for_the_method_that_was_priced(approved, call):
    """One chosen by hand, or the one that keeps a limit which the recommended one does not; what is
    asked for where prices need it, and what an empty machine costs besides."""
    large = STATED.replace("Qwen3-8B", "Qwen3-32B")
    asked = (
        f"{large} --budget 900 --choose 'rag & sft+full' --force",
        f"{large} --budget 15 --gpu unknown --signal facts_change_often",
        f"{large} --gpu unknown",
        f"{large} --gpu unknown --budget 0,6h",
        "--task qa --data-kind paired --data-rows 900 --budget 50",
        f"{STATED} --budget 500 --gpu B200",
    )
    approved([call(*shlex.split(line))[1].splitlines() for line in asked])
    assert catalogue_gpus()["nvidia-gh200-96gb"].spec.rented_most == 1  # Lambda's


def test_with_privacy_nobody_is_sent_to_private_owners(document):
    """Neither to rent nor as the price of a card."""
    private = f"--json {STATED} --priority privacy"
    rent = document(f"{private} --gpu unknown --budget 50")[1]["rent"]
    assert (len(rent), any("marketplace" in way["price_source"] for way in rent)) == (3, False)
    assert document(f"{private} --gpu 'RTX 3090'")[1]["recommendation"]["estimate"]["usd"] is None


def test_what_was_assumed_comes_first(call):
    """Which of several cards was taken stands on the first screen."""
    _, out, _ = call(*shlex.split(f"{STATED} --gpu '2 x A100'"))
    assert "Assumed  'A100' may be A100 SXM4 40GB" in out


# --------------------------------------------------------------------------- files


@pytest.mark.parametrize("write", [shlex.quote, '"{}"'.format, lambda text: text.replace(" ", "\\ "),
                                   lambda text: "file://" + pathname2url(os.path.abspath(text))])  # fmt: skip
def test_a_path_is_taken_as_a_terminal_gives_it(tmp_path, monkeypatch, call, write):
    """In quotes, escaped, or as file://; a file of just that name wins."""
    monkeypatch.chdir(tmp_path)
    Path("Customer mails.csv").write_text("question,answer\na,b\n")
    typed = write("Customer mails.csv")
    assert Path(typed_path(typed)).samefile("Customer mails.csv")
    assert typed_path(f"a={typed}") == f"a={typed_path(typed)}"
    named = shlex.quote(typed)
    code, out, _ = call(*shlex.split(f"--json --task qa --gpu none --data {named}"))
    assert (code, json.loads(out)["data"]["rows"]) == (0, 1)
    if not typed.startswith("file:"):
        Path(typed).write_text("")
        assert typed_path(typed) == typed


def test_a_path_of_windows_is_found_or_stays_as_it_was_typed(tmp_path, monkeypatch, call):
    """With the other slashes where there is one, else with what to do."""
    monkeypatch.chdir(tmp_path)
    Path("Mails 2025").mkdir()
    Path("Mails 2025/all (new).csv").write_text("question,answer\na,b\n")
    assert typed_path(r"Mails 2025\all (new).csv") == "Mails 2025/all (new).csv"
    for typed in (r"\\server\share\a.jsonl", r"Q:\data\a.jsonl"):
        code, _, said = call("check", typed)
        assert (code, said.partition(":" if typed[0] == "\\" else ": ")[0]) == (2, typed)
        assert "/mnt/c/" in said


def test_the_data_files_that_are_here_are_offered(tmp_path, monkeypatch):
    """By name; another one is typed."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "more.csv", "plan.yaml", "README.md", "notes/a.txt", "src/a.py"):
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("x\n")
    Path("pairs.json").write_text("[]\n")
    ui = ScriptedUi("Write texts", "train.jsonl")
    assert known(answers_of(ui, "data_path"))["data_path"] == "train.jsonl"
    assert ui.offered[-1][:5] == ["more.csv", "notes", "pairs.json", "train.jsonl", "Another file"]


def test_examples_beside_pairs_are_read_or_refused(tmp_path, approved, document, call):
    """Stage sft of sft>dpo learns from them; an answer that reads them nowhere says so."""
    (tmp_path / "chats.jsonl").write_text(PAIRS)
    pair = {"prompt": "Where is it?", "chosen": "It is here, at last.", "rejected": "No."}
    (tmp_path / "pairs.jsonl").write_text(
        "".join(json.dumps(pair | {"prompt": f"Where is {n}?"}) + "\n" for n in range(300))
    )
    asked = "--task chat_assistant --gpu 'A100 80GB' --model Qwen/Qwen3-8B --data pairs.jsonl"
    both, chosen = f"{asked} --examples chats.jsonl", "--choose 'sft>dpo' --force"
    found = [document(f"--json {both} {more}")[1] for more in ("", chosen)]
    approved([
        *(
            [one["recommendation"]["composition"], one["warnings"], one["plan"]["stages"],
             [other["composition"] for other in one["alternatives"]]]
            for one in found
        ),
        document(f"--json {asked} --examples pairs.jsonl")[1]["warnings"],
        call(*shlex.split(f"{both} {chosen}"))[1].splitlines(),
        call(*shlex.split(f"{asked.replace('pairs', 'chats')} --examples pairs.jsonl")),
    ])  # fmt: skip


# --------------------------------------------------------------------------- another tool's file

AXOLOTL = """\
# our first try
base_model: Qwen/Qwen2.5-7B-Instruct
datasets:
  - path: data.jsonl   # the tickets
    type: chat_template
sequence_len: 8192
micro_batch_size: 4
learning_rate: 2e-5
adapter: lora
hub_token: hf_abcdefghijklmnopqrstuvwxyzABCDEFGH
output_dir: out
"""


@pytest.mark.extra("other_tools")
def test_a_configuration_is_written_with_what_was_suggested(
    tmp_path, monkeypatch, approved, document, call
):
    """Comments and secrets stay; each change has its reason; what is there stays, and the file gets
    a free name."""
    monkeypatch.chdir(tmp_path)
    Path("ax.yaml").write_text(AXOLOTL)
    check = ("check", "ax.yaml", "--gpu", "RTX 4090")
    code, found = document(shlex.join([*check, "--fix", "fixed.yaml", "--json"]))
    fixed = Path("fixed.yaml").read_text()
    approved([code, found["written"], found["fits_after"], found["changes"], fixed.splitlines()])
    assert "hf_abcdef" not in str(found)
    assert call("check", "fixed.yaml", "--gpu", "RTX 4090")[0] == 0
    code, out, _ = call(*check, "--fix", "fixed.yaml")
    assert "fixed.yaml is there already and stays as it is.\nWritten: fixed-2.yaml\n" in out
    assert (code, Path("fixed-2.yaml").read_text(), Path("fixed.yaml").read_text()) == (
        0, fixed, fixed,
    )  # fmt: skip
    assert "advise check fixed-2.yaml" in out
    for as_is, rate, promised in (("", 0.0002, 0), ("--as-is", 2e-5, 3)):
        code, out, _ = call(*check, "--plan", f"plan{as_is}.yaml", *as_is.split())
        assert (code, read_plan(f"plan{as_is}.yaml").stages[0].learning_rate) == (promised, rate)
        assert "Turn it into a plan" not in out


def test_rows_are_not_rewritten(tmp_path, call):
    """One line says what to do in its place."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": "a", "completion": "b"}\n')
    code, out, err = call("check", str(tmp_path / "rows.jsonl"), "--fix", str(tmp_path / "new"))
    assert (code, out, "--fix: rows are not rewritten" in err) == (2, "", True)
    assert not (tmp_path / "new").exists()


# --------------------------------------------------------------------------- for programs


@pytest.mark.parametrize(
    "given",
    [
        "--task qa --gpu 'RTX 4090' --model Qwen/Qwen3-8B",
        "--task domain_expertise --gpu none --signal facts_change_often",
        f"{STATED} --budget 50 --gpu unknown",
        "--task qa --gpu 'GTX 1050' --model meta-llama/Llama-3.1-70B --data-kind paired",
    ],
)
def test_the_brief_document_is_the_answer_in_two_kilobytes(call, document, given):
    """The commands are those of the whole document, which are those of the page."""
    code, whole = document(f"--json {given}")
    page = " ".join(call(*shlex.split(given), "--why")[1].split())
    assert whole["next_steps"]
    assert all(line in page for line in whole["next_steps"])
    _, out, _ = call("--json", "--brief", *shlex.split(given))
    assert len(out.encode()) <= 2048
    brief = json.loads(out)
    assert brief["commands"] == whole["next_steps"]
    assert brief["composition"] == whole["recommendation"]["composition"]
    assert brief["estimate"]["need_gib"] == whole["recommendation"]["estimate"]["need_gib"]
    assert (brief["exit"], 1 <= len(brief["why"]) <= 3) == (code, True)
    assert brief["engine"] == whole["recommendation"]["engine"]["id"]
    measured = {one.removesuffix(" --dry-run") for one in brief["commands"] if "--dry-run" in one}
    assert measured <= {*brief["commands"]}, "no line that trains"
    assert call("--brief", *shlex.split(given))[0] == 2


def test_the_brief_numbers_are_those_of_the_page(document):
    """The whole time, and without a card those of the first one to rent; a way out needs no file."""
    told = document(f"--json --brief {STATED} --gpu 'RTX 4090'")[1]["estimate"]
    estimate = document(f"--json {STATED} --gpu 'RTX 4090'")[1]["recommendation"]["estimate"]
    whole = (estimate["times"]["total_hours"], estimate["total_usd"])
    assert (told["hours"], told["usd"]) == whole == (estimate["hours"], estimate["usd"])
    limited = f"{STATED} --budget 50 --gpu unknown"
    first, told = document(f"--json {limited}")[1]["rent"][0], document(f"--json --brief {limited}")
    assert (told[1]["estimate"]["hours"], told[1]["estimate"]["usd"]) == (
        first["hours"],
        first["usd"],
    )
    stuck = "--task qa --gpu 'GTX 1050' --model Qwen/Qwen3-8B --data-kind paired --data-rows 2k"
    code, told = document(f"--json --brief {stuck}")
    assert (code, {line.split()[1] for line in told["commands"]}) == (3, {"--task"})


def test_a_long_answer_is_cut_to_two_kilobytes(call, tmp_path, monkeypatch):
    """Texts first, then commands from the end."""
    monkeypatch.chdir(tmp_path)
    tasks = [f"team{number}={'x' * 120}{number}.jsonl" for number in range(12)]
    for task in tasks:
        Path(task.partition("=")[2]).write_text(PAIRS)
    named = [word for task in tasks for word in ("--tasks", task)]
    code, out, _ = call("--json", "--brief", "--task", "multi_department", "--gpu", "none", *named)
    assert (code, json.loads(out)["brief"]) == (0, True)
    assert len(out.encode()) <= 2048


PLACEHOLDER = re.compile(
    r"(?<![\w$])(?:[A-Z]+_)*(?:FILE|PLAN|NAME|ENCODING|MODEL|FOLDER|RUN|ID|COL|COLUMN|METHOD|HUB)\b"
)
FILES = {
    "names.jsonl": b'{"foo": "A tower?", "bar": "Thirty metres high."}\n{"foo": "A", oops\n' * 9,
    "random.jsonl": bytes(range(256)) * 9,
    "my text.pdf": b"%PDF-1.4",
    "old.docx": b"PK\x03\x04",
}
HALF = "--gpu H100 --data-kind paired --data-rows 3000 --model"


@pytest.mark.extra("jobs")
@pytest.mark.parametrize(
    ("typed", "said"),
    [
        ("check names.jsonl", "names.jsonl:2:14: invalid JSON"),  # F35, beside the columns
        ("check names.jsonl", "    advise check names.jsonl --map question=foo answer=bar\n"),
        ("check random.jsonl", "random.jsonl: this is not a text file"),
        ("check 'my text.pdf'", "    pdftotext 'my text.pdf' 'my text.txt'\n"),
        ("check old.docx", "    pandoc -t plain old.docx -o old.txt\n"),
        ("run", "a plan, or answers"),
        ("run p.yaml --task qa", "a plan, or answers"),
        ("export --to bundle", "a plan, named before --to"),
        ("estimate", "    advise estimate --model Qwen/Qwen3-8B --gpu 'RTX 4090'\n"),
        ("--task qa --choose nosuch", "`advise rules` explains each"),
        (f"--task qa {HALF} zzz-13B", "\n  advise --gpu H100 --data examples.jsonl\n"),
        (f"--task qa {HALF} Qwen/Qwen3-8B --choose ppo+lora --force", "(--reward-model)"),
        ("--task qa --gpu H100 --plan p.yaml", "--data examples.jsonl: your examples"),
    ],
)
def test_what_is_printed_has_no_placeholders(call, tmp_path, typed, said):
    """A line can be pasted as it stands; what only the person knows is asked for, or named in
    words.
    """
    for name, content in FILES.items():
        (tmp_path / name).write_bytes(content)
    _, out, err = call(*shlex.split(typed))
    assert said in out + err
    assert not PLACEHOLDER.findall(out + err)


@pytest.mark.parametrize(
    ("text", "asked"),
    {
        "'qwen 7b' read as Qwen/Qwen2.5-7B; --model names another.": "'qwen 7b' read as"
        " Qwen/Qwen2.5-7B.",
        "It is not known: `--gpu` says which.": "It is not known.",
        "Unsure of the depth (--depth) or a teacher (--teacher).": "Unsure of the depth or a"
        " teacher.",
        "switched off (template: {thinking: false}), for use": "switched off, for use",
        "try a few steps: `advise run --max-steps 5`. It is slow.": "try a few steps. It is slow.",
        "Qwen3.5 is new; no flag - or dash -- here.": "Qwen3.5 is new; no flag - or dash -- here.",
    }.items(),
)
def test_who_answers_questions_reads_no_flags(text, asked):
    """What the page of the questions leaves out is the clause that helps only who types flags."""
    assert without_flags(text) == asked


@pytest.mark.parametrize("whole", [False, True])
def test_the_page_of_the_questions_has_no_flags(whole, capsys):
    """Neither the first screen nor the reasons behind it, beside commands to paste."""
    answers = {
        "task": "qa",
        "model": "qwen 7b",
        "gpu": "H100 SXM5 80GB",
        "data": {"kind": "paired"},
    }
    found, out = advise(answers), console()
    if whole:
        print_whole_answer(found, out, words=without_flags)
    else:
        print_advice(found, out, read_in="menu")
    said = [line for line in capsys.readouterr().out.splitlines() if "advise " not in line]
    assert "read as Qwen/Qwen2.5-7B-Instruct" in " ".join(said)
    assert not [line for line in said if re.search(r'--[a-z]|\{[^"]', line)]


@pytest.mark.extra("other_tools")
def test_a_printed_plan_is_a_file_that_is_not_there(tmp_path, monkeypatch, call):
    """Else the line would be refused."""
    monkeypatch.chdir(tmp_path)
    Path("ax.yaml").write_text(AXOLOTL)
    Path("plan.yaml").touch()
    line = next(one for one in call("check", "ax.yaml")[1].splitlines() if "Turn it" in one)
    assert line.endswith(" advise check ax.yaml --plan plan-2.yaml")


def test_texts_that_no_stage_reads_are_said_to_be_so_first(call, tmp_path):
    """Examples are to be written of chapters: the time is not of them, and the page says whose."""
    for number in range(9):
        (tmp_path / f"{number}.txt").write_text(f"Chapter {number}. " + "The ferry left. " * 1200)
    _, page, _ = call("--task", "generation", "--data", str(tmp_path), "--gpu", "none")
    assert "no stage reads" in " ".join(page.split()).lower()
    asked = ("--task", "generation", "--data", str(tmp_path), "--gpu", "none", "--why")
    assert "--choose cpt+lora --force" in " ".join(call(*asked)[1].split())


CALLED = ".venv/bin/advise"  # as people call it who have not activated the environment


def script(path: Path, body: str, *, program: str = "/bin/sh") -> None:
    """A program for the shells of these tests."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!{program}\n{body}\n")
    path.chmod(0o755)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the program where a virtual environment has it, and nothing on the path."""
    body = f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom advisor.cli import main\nmain()"
    script(tmp_path / CALLED, body, program=sys.executable)
    (tmp_path / "chats.jsonl").write_text(PAIRS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def environment(**more: str) -> dict[str, str]:
    """The environment of a shell that knows nothing of ours."""
    told = {"PATH": "/usr/bin:/bin", "COLUMNS": "80", "TERM": "xterm", "LANG": "C.UTF-8"}
    return {**told, "HOME": str(Path.cwd()), "NO_COLOR": "1", **more}


def pasted(line: str, **more: str) -> str:
    """What a shell prints of a line that it takes; there is no terminal."""
    code, out, err = ended(line, **more)
    assert code == 0, f"{line}\n{err}"
    return out


def ended(line: str, **more: str) -> tuple[int, str, str]:
    """Exit code, output and errors of a line in a shell."""
    done = subprocess.run(
        ["bash", "-c", line], env=environment(**more), stdin=subprocess.DEVNULL,
        capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.fixture
def typed(folder, terminal):
    """Starts a line in a terminal."""
    return lambda line: terminal("bash", ["-c", line], env=environment())


def test_without_the_task_the_line_asks_for_what_is_open(typed):
    """On a terminal the wizard starts with the data answered: it asks the task, not the file."""
    child = typed(f"{CALLED} --data chats.jsonl")
    child.expect("Known: .*chats.jsonl")
    child.expect("1. What should the model do for you")
    child.send("\r")
    child.expect(r"2\. (?!Where are your examples)")


@pytest.mark.parametrize("more", ["--plan new.yaml", "--why", "--choose lora"])
def test_flags_that_the_wizard_does_not_take_need_the_task(typed, more):
    """The wizard alone asks for it; `--why` is a matter of its menu."""
    child = typed(f"{CALLED} --data chats.jsonl --gpu none {more}; echo ended with $?")
    if more == "--why":
        child.expect("1. What should the model do for you")
        child.send("\r")
        child.expect(r"2\. ")
    else:
        child.expect("alone asks for it")
        child.expect("ended with 2")
        assert not Path("new.yaml").exists()


def test_without_a_terminal_the_missing_task_is_named(folder):
    """Nobody is asked where nobody can answer: exit code 2 says what is missing, and its values."""
    code, _, err = ended(f"{CALLED} --data chats.jsonl")
    assert (code, "task is not stated" in err, "customer_service" in err) == (2, True, True)


def test_the_first_line_of_the_readme_leaves_the_program_on_the_path(folder):
    """Later lines begin with `advise`: pip and demo are played, shell and environment are real."""
    (folder / CALLED).unlink()
    for name, body in {
        "bin/python3": f'exec {shlex.quote(sys.executable)} "$@" --without-pip',
        ".venv/bin/pip": r"printf '#!/bin/sh\necho played $1' > .venv/bin/advise;"
        " chmod +x .venv/bin/advise",
    }.items():
        script(folder / name, body)
    said = pasted(f"{SETUP[0]}\nadvise check", PATH=f"{folder}/bin:/usr/bin:/bin")
    assert said == "played demo\nplayed check\n"


def test_lines_name_the_program_as_it_was_called(folder):
    """Lines begin as the line typed did if `advise` is not on the path, else with `advise`."""
    assert f"\nNext: {CALLED} --task " in pasted(f"{CALLED} check chats.jsonl")
    assert f"`{CALLED}` asks the questions" in ended(f"{CALLED} run")[2]
    path = f"{Path(CALLED).parent.resolve()}:/usr/bin:/bin"
    assert "\nNext: advise --task " in pasted(f"{CALLED} check chats.jsonl", PATH=path)


@pytest.mark.parametrize(
    ("source", "called"),
    [
        ("/a wheel.whl", "uvx --from '/a wheel.whl' finetune-advisor"),
        (None, "uvx --from finetune-advisor finetune-advisor"),
    ],
)
def test_lines_of_uvx_are_lines_of_uvx(monkeypatch, source, called):
    """Its `advise` is on the path of that one call alone; training needs an installation."""
    monkeypatch.setattr(program, "UVX", True)
    monkeypatch.setattr(sys, "argv", ["/cache/uv/archive-v0/m8RM0NQ/bin/finetune-advisor"])
    monkeypatch.setattr(program, "_source", lambda: (source, False))
    assert program.as_called("advise check x") == f"{called} check x"
    assert program.install_line().startswith("uv tool install --force ")


@pytest.mark.parametrize(
    "text",
    [
        "this version of advise has no trainer for it",
        "a rule that they advise against",
        "/opt/advise run x",
        "finetune-advise run x",
    ],
)
def test_the_word_in_a_sentence_stays(monkeypatch, text):
    """Only lines to paste are rewritten, whichever command they begin with."""
    monkeypatch.setattr(sys, "argv", [CALLED])
    monkeypatch.setenv("PATH", "")
    assert program.as_called(text) == text
    monkeypatch.setattr(sys, "argv", ["/my tools/advise"])
    assert program.as_called("advise run x") == "'/my tools/advise' run x"
    monkeypatch.setattr(sys, "argv", ["/tools/finetune-advisor"])
    assert program.as_called("advise run x") == "/tools/finetune-advisor run x"
    assert tuple(COMMANDS) == program.COMMANDS
