"""The printed page.

After a look at the change: UPDATE_GOLDEN=1 python -m pytest tests/render/test_terminal.py
"""

import io
import re

import pytest
from msgspec import structs
from rich.console import Console

from advisor.advice.types import KnownFact
from advisor.estimate.types import Moment, Term
from advisor.ground.types import Answer, AnswerSet, Source
from advisor.ground.units import GIB
from advisor.ground.wrap import on_lines, wrapped
from advisor.methods import methods, objectives, remedies, remedy, schemes, updates
from advisor.methods.composition import parse_composition
from advisor.render.answer.needs import cost_line, term_words, time_line
from advisor.render.answer.page import first_screen, page_of
from advisor.render.answer.why import known_words, ordered_warnings
from advisor.render.blocks import Items, Paragraph
from advisor.render.next_steps import training_steps
from advisor.render.terminal import print_advice, print_candidate, print_whole_answer
from advisor.render.words import meaning_of, whole_usd
from tests.conftest import golden
from tests.render.example_advice import (
    CPU,
    EXAMPLES,
    answers,
    injected,
    remedy_alone,
    scenario_4,
    scenario_5,
)


def printed(advice, *, width=80, plan_path=None, first=False, read_in=None, **console) -> str:
    """The whole answer as text, or its first screen."""
    file = io.StringIO()
    screen = Console(file=file, width=width, **console)
    if first or read_in:
        print_advice(advice, screen, plan_path=plan_path, read_in=read_in or "shell")
    else:
        print_whole_answer(advice, screen, plan_path=plan_path)
    return file.getvalue()


def squeezed(text: str) -> str:
    """The text without white space, rules and bullets: what must survive any wrapping."""
    return re.sub(r"[\s─━-]+", "", text)


# At 120 columns the methods stand in a table.
GOLDENS = [(name, 80, part) for name in EXAMPLES for part in ("first", "whole")]


@pytest.mark.parametrize(("name", "width", "part"), [*GOLDENS, ("scenario_5", 120, "whole")])
def test_pages_look_as_they_were_looked_at(name, width, part):
    """Each kind of answer prints exactly the first screen and whole answer that were approved."""
    plan_path = "my plan.yaml" if name.startswith("scenario") else None
    text = printed(EXAMPLES[name](), width=width, plan_path=plan_path, first=(part == "first"))
    text = "\n".join(line.rstrip() for line in text.split("\n"))
    assert text == golden(f"advice_{name}_{part}_{width}.txt", text)


def texts_of_page(advice, width):
    """What the whole answer has to show, and the commands in it, which stay whole."""
    page = page_of(advice)
    blocks = [block for section in page.sections for block in section.blocks]
    items = [item for block in blocks if isinstance(block, Items) for item in block.items]
    rows = [
        row for block in blocks if not isinstance(block, Items | Paragraph) for row in block.rows
    ]
    # Cells of a wrapped table stand beside each other.
    cells = [row[-1:] if width < 100 else " ".join(row).split()[:8] for row in rows]
    wanted = [
        page.first.answer,
        *(section.title for section in page.sections),
        *(block.text for block in blocks if isinstance(block, Paragraph)),
        *(text for item in items for text in (item.text, item.detail)),
        *(cell for row in cells for cell in row),
    ]
    return wanted, [command for item in items for command in item.commands]


def texts_of_first_screen(advice, width):
    first = first_screen(advice, columns=width)
    wanted = [first.answer, *first.labelled, *(step.text for step in first.steps)]
    wanted += [item.text for items in first.labelled.values() for item in items]
    return wanted, [command for step in first.steps for command in step.commands]


@pytest.mark.parametrize("first", [True, False], ids=["first", "whole"])
@pytest.mark.parametrize("width", [20, 40, 64, 80, 120])
@pytest.mark.parametrize("name", [*EXAMPLES, "injected"])
def test_no_width_loses_text(name, width, first):
    """Every word is printed, and no line is too wide but a command, which is copied whole."""
    advice = {**EXAMPLES, "injected": injected}[name]()
    text = printed(advice, width=width, first=first)
    wanted, commands = (texts_of_first_screen if first else texts_of_page)(advice, width)
    commands = [command.replace("\x1b", "\\x1b") for command in commands]
    assert [command for command in commands if command not in text] == []
    assert max(len(line) for line in text.splitlines() if line.strip() not in commands) <= width
    found = squeezed(text)
    assert [one for one in wanted if squeezed(one.replace("\x1b", "\\x1b")) not in found] == []


@pytest.mark.parametrize("first", [True, False])
def test_colour_adds_nothing_but_colour(monkeypatch, first):
    """Words and marks are the same with colour and without, as by NO_COLOR or a dumb terminal."""
    plain = printed(scenario_5(), first=first)
    coloured = printed(scenario_5(), first=first, force_terminal=True, color_system="truecolor")
    assert ("\x1b[" in coloured, re.sub(r"\x1b\[[0-9;]*m", "", coloured)) == (True, plain)
    monkeypatch.setenv("NO_COLOR", "1")
    text = printed(scenario_5(), first=first, force_terminal=True)
    assert not re.search(r"\x1b\[(?:[0-9;]*;)?3[0-9]", text)
    monkeypatch.setenv("TERM", "dumb")
    assert printed(scenario_5(), first=first) == plain == re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_terminal_without_the_signs_gets_others():
    """Where stars and long dashes cannot be encoded, plain signs replace them and nothing fails."""
    raw = io.BytesIO()
    console = Console(file=io.TextIOWrapper(raw, encoding="ascii", write_through=True), width=80)
    print_advice(scenario_4(), console)
    print_whole_answer(scenario_4(), console)
    text = raw.getvalue().decode("ascii")
    assert [one for one in ("*****", "2 x A100") if one not in text] == []


@pytest.mark.parametrize("make", [scenario_5, scenario_4, remedy_alone])
def test_on_a_small_screen_the_answer_leaves_room_for_the_menu(make):
    """Fifteen lines of 24; on a large one the answer is as it is in the shell."""
    small, large = (
        len(printed(make(), height=rows, read_in="menu").splitlines()) for rows in (24, 60)
    )
    assert small <= min(16, large)


def test_what_may_end_the_run_is_told_first():
    """First the model that is meant, unknown or untried; then what was assumed; none twice."""
    ordered = (
        "model: 'qwen' may mean Qwen/Qwen3-8B, Qwen/Qwen3-4B: name one of them",
        "'qwen8b' is not a model we know by that name; taken as Qwen/Qwen3-8B",
        "these trainers were never run on an Apple GPU: try it",
        "'Phi-4' read as microsoft/phi-4",
        "no answer in the data holds a call",
        "all 2 GPUs are used: each holds the whole model",
    )
    elsewhere = (
        "no model was named: Qwen/Qwen3-8B is a suggestion",
        "it may not fit: it needs 21 GiB",
    )
    said = (*ordered[::-1], *elsewhere, ordered[3])
    assert ordered_warnings(structs.replace(scenario_5(), warnings=said)) == ordered


def test_a_rented_machine_is_paid_for_its_whole_time():
    """What is shown as cost is the whole time by the price, as the lines before it say."""
    estimate = scenario_5().recommendation.estimate
    whole = estimate.cost_usd * estimate.times.total_s / estimate.duration_s
    assert whole_usd(estimate) == pytest.approx(whole)
    assert whole > estimate.cost_usd
    assert whole_usd(structs.replace(estimate, times=None)) == estimate.cost_usd


def test_every_method_has_words():
    """Each objective, scheme and remedy has a plain phrase and a meaning of its own."""
    assert len({remedy(name).phrase for name in remedies()}) == len(remedies())
    assert set(schemes()) == {*updates(), "qlora"}
    names = [*objectives(), *schemes(), *remedies()]
    assert len({meaning_of(name) for name in names} - {"no description", ""}) == len(names)
    for_each = [scheme.phrase_per_task for scheme in schemes().values()]
    phrases = [one.phrase for one in (*methods().objectives.values(), *schemes().values())]
    assert len({*phrases, *for_each} - {""}) == len(objectives()) + 2 * len(schemes())
    assert all("{tasks}" in phrase for phrase in for_each)


def changed(advice, *, situation=None, recommendation=None, estimate=None, **more):
    """The advice with other fields of its parts."""
    found = advice.recommendation
    numbers = structs.replace(found.estimate, **(estimate or {}))
    found = structs.replace(found, estimate=numbers, **(recommendation or {}))
    stated = structs.replace(advice.situation, **(situation or {}))
    return structs.replace(advice, recommendation=found, situation=stated, **more)


def explained() -> str:
    """What the walk through the reasons prints of one candidate."""
    advice, console = scenario_5(), Console(file=io.StringIO(), width=80)
    print_candidate(advice.alternatives[3], console, methods=advice.methods)
    return console.file.getvalue()


def of_files(count: int) -> list[str]:
    """What is said of data that were read from so many files."""
    paths = ", ".join(f"team-{number}.jsonl" for number in range(count))
    facts = (("data_kind", "paired", "you have pairs"), ("data_rows", 60, "you have 60 examples"))
    return [
        known_words(KnownFact(fact=fact, value=value, origin=f"read from {paths}", text=text))
        for fact, value, text in facts
    ]


def limited(facts, **times) -> list[str]:
    """The lines on time and cost where a person named a limit."""
    advice = scenario_5()
    times = {"times": structs.replace(advice.recommendation.estimate.times, **times)}
    advice = changed(advice, estimate=times, facts={**advice.facts, **facts})
    return [time_line(advice), cost_line(advice)]


def last_steps(model="llama8"):
    """The steps that train a model of this name."""
    known = {**scenario_5().situation.answers.known, "model": Answer(value=model, origin="flag")}
    situation = {"answers": AnswerSet(known=known), "model": None}
    return training_steps(changed(scenario_5(), situation=situation))


SIZES = {"weights": 15.27, "activations": 1.07, "logits": 1.07, "context": 0.9, "rest": 0.96}
SIGNAL = answers(task="qa", facts_change_often=True, signals=("facts_change_often",))
WARNED = {"warnings": ("one of them", "time: another", "more than 8 GPUs")}
FREE = {"cost_usd": 0.0, "cost_note": ""}
UNKNOWN = {"duration_s": None, "unknown": ("model: its size is not known",)}
SHOWN = {
    # 15.3 + 1.1 + 1.1 + 1.8 GiB are 19.3 GiB, though the rest is 1.86 GiB before rounding.
    "terms of memory add up as they are printed": lambda: term_words(
        Moment(name="loss", terms=tuple(
            Term(name=name, size_bytes=round(size * GIB), because="", source=Source(title="by hand"))
            for name, size in SIZES.items()
        ))
    ),
    **{
        f"the last line of the {place} says where warnings are": lambda place=place: printed(
            structs.replace(scenario_5(), **WARNED), height=60, read_in=place
        )
        for place in ("menu", "shell")
    },
    "what trains now is not told to be trained": lambda: printed(scenario_5(), read_in="run"),
    "where nothing trains the steps are shown": lambda: printed(remedy_alone(), read_in="run"),
    "two files are named": lambda: of_files(2),
    "many files are counted, and an amount is that of the largest": lambda: of_files(6),
    "an escape is shown, not obeyed": lambda: printed(injected(), plan_path="a\x1b[2J.yaml"),
    "without the guide's table the candidates are listed": lambda: printed(
        structs.replace(scenario_5(), methods={})
    ),
    "one candidate": explained,
    "a model that nobody can size": lambda: time_line(
        changed(scenario_5(), estimate=UNKNOWN, situation={"model": None})
    ),
    "one's own processor costs no dollars": lambda: printed(
        changed(scenario_5(), estimate=FREE, situation={"hardware": CPU}, alternatives=())
    ),
    "a signal that was asked for is listed once": lambda: printed(
        changed(scenario_5(), situation={"answers": SIGNAL})
    ),
    "within the limit": lambda: limited({"budget_hours": 8}),
    "above the limit": lambda: limited({"budget_hours": 1}),
    "the upper end passes the limit": lambda: limited(
        {"budget_usd": 1}, train_low_s=4000, train_high_s=9000
    ),
    # Only the person knows it, so the line opens the questions.
    "a plan needs a name of the hub": last_steps,
    "a name that may be one is kept": lambda: last_steps("our/llama8"),
    "a plan needs a model that scores": lambda: training_steps(
        changed(scenario_5(), recommendation={"composition": parse_composition("ppo+lora")})
    ),
}  # fmt: skip


@pytest.mark.parametrize("what", SHOWN)
def test_what_is_shown_was_looked_at(approved, what):
    """Words of a page in the situations that the whole pages do not hold."""
    found = SHOWN[what]()
    assert "\x1b" not in str(found)
    approved(found)


@pytest.mark.parametrize(
    "line", ["Serve it:  sh ", "Start:  bash ", "  rm -r ", "  ask it:   ollama run ", "Start: cd "]
)
def test_a_line_to_paste_is_never_broken(monkeypatch, line):
    """However long its path is, and how far it stands behind its label; nor is what is quoted."""
    monkeypatch.setenv("COLUMNS", "80")
    said = f"{line}{'a folder/' * 12}"
    assert on_lines(said) == said
    quoted = f"`advise check {'data/' * 12} --show-row 1 --model MODEL`"
    assert quoted in wrapped(f"the first row, which is printed at the start, is {quoted}", 80)
