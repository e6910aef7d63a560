"""Exactly what the assistant says is learned, under many templates; and `check --show-row`."""

import io
import json
from copy import deepcopy
from itertools import groupby

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st
from msgspec import structs
from rich.console import Console

from advisor.data.example import Example, Message
from advisor.render.check_page import print_row
from tests.conftest import examples
from tests.trainers.families import CHATML, FAMILIES, family_tokenizer
from tests.trainers.runs import chat, write_rows
from trainers.rows import IGNORED, Templater
from trainers.rows.conversation import answer_row
from trainers.rows.row import Row, Unusable
from trainers.tools.show_row import show_row

# Letters of several scripts, emoji, spaces and line ends, but no marks of a template: those are
# tested by themselves.
SAID = st.text(
    st.characters(
        codec="utf-8",
        exclude_categories=("Cs", "Cc", "Cn", "Co"),
        include_characters="\n",
        exclude_characters="<>[]|",
    ),
    min_size=1,
    max_size=40,
)
SAID = SAID.map(str.strip).filter(bool)
FEW = examples(0.5, suppress_health_check=list(HealthCheck), derandomize=True)


def runs(tokenizer, row: Row) -> list[str]:
    """The texts that are learned, each run of tokens decoded by itself."""
    marked = groupby(
        zip(row.input_ids, row.labels, strict=True), key=lambda pair: pair[1] != IGNORED
    )
    return [tokenizer.decode([token for token, _ in group]) for learned, group in marked if learned]


def conversation(
    *said: str, system: str | None = None, weights: tuple[float, ...] = (1.0,) * 40
) -> Example:
    roles = ("user", "assistant") * 20
    turns = (Message(*turn) for turn in zip(roles, said, weights, strict=False))
    return Example(row=1, messages=(*([Message("system", system)] if system else []), *turns))


def learned(name: str, *said: str, **keys) -> list[str]:
    """What a family's model learns of a conversation."""
    tokenizer = family_tokenizer(name)
    return runs(tokenizer, answer_row(conversation(*said, **keys), Templater(tokenizer)))


def wanted(name: str, *answers: str) -> list[str]:
    """What it has to learn of one with these answers."""
    family = FAMILIES[name]
    return [*map(family.middle, answers[:-1]), family.last(answers[-1])]


def with_template(template: str):
    """A tokenizer with a template that does something wrong."""
    tokenizer = deepcopy(family_tokenizer("smollm"))
    tokenizer.chat_template = template
    return tokenizer


@pytest.mark.parametrize("name", FAMILIES)
@FEW
@given(turns=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3), system=st.none() | SAID)
def test_exactly_what_the_assistant_says_is_learned(name, turns, system):
    """Each run of learned tokens reads as an answer and the token that ends it."""
    tokenizer, answers = family_tokenizer(name), [answer for _, answer in turns]
    said = [text for turn in turns for text in turn]
    example = conversation(*said, system=system if FAMILIES[name].system else None)
    row = answer_row(example, Templater(tokenizer))
    assert runs(tokenizer, row) == wanted(name, *answers)
    assert row.expected == answers[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_chat_is_learned_as_a_short_one_with_few_renderings(name, monkeypatch):
    """A template that writes all turns alike renders twenty answers no more often than ten."""
    render, renderings = Templater.render, []
    monkeypatch.setattr(
        Templater, "render", lambda *args, **keys: renderings.append(1) or render(*args, **keys)
    )
    counts = []
    for turns in (10, 20):
        answers = [f"Yes, {place}." for place in range(turns)]
        said = [text for place in range(turns) for text in (f"Question {place}?", answers[place])]
        renderings.clear()
        assert learned(name, *said) == wanted(name, *answers)
        counts.append(len(renderings))
    assert counts[0] == counts[1] < 30


@pytest.mark.parametrize("name", FAMILIES)
@FEW
@given(first=SAID, second=SAID, third=SAID, fourth=SAID)
@example(first="a", second="0", third="0", fourth="0")  # gpt-oss writes "final" before an answer
def test_weight_0_is_read_but_not_learned(name, first, second, third, fourth):
    """An answer of weight 0 stays in the text and out of the loss, in every template."""
    family, tokenizer, said = FAMILIES[name], family_tokenizer(name), (first, second, third, fourth)
    row = answer_row(conversation(*said, weights=(1, 0, 1, 1)), Templater(tokenizer))
    assert runs(tokenizer, row) == [family.last(fourth)]
    assert second in tokenizer.decode(row.input_ids)
    assert learned(name, *said, weights=(1, 1, 1, 0)) == [family.middle(second)]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_not_taken_for_the_same_one_of_weight_0(name):
    """Of two turns that say the same, the one with a weight is learned."""
    tokenizer = family_tokenizer(name)
    said = ("One?", "Yes.", "Well?", "No.", "Well?", "No.", "Now?", "Bye.")
    row = answer_row(conversation(*said, weights=(1, 1, 1, 0, 1, 1, 1, 1)), Templater(tokenizer))
    assert runs(tokenizer, row) == wanted(name, "Yes.", "No.", "Bye.")
    marks = [label != IGNORED for label in row.labels]
    starts = [at for at in range(1, len(marks)) if marks[at] and not marks[at - 1]]
    assert tokenizer.decode(row.input_ids[: starts[1]]).count("No.") == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_a_row_begins_as_a_server_asks_and_ends_the_turn(name):
    """The last learned token is a special one, which generation is told to stop at."""
    tokenizer = family_tokenizer(name)
    templater = Templater(tokenizer)
    row = answer_row(conversation("Where is it?", "Here."), templater)
    assert row.prompt == tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is it?"}], tokenize=False, add_generation_prompt=True
    )
    last = [label for label in row.labels if label != IGNORED][-1]
    assert last in templater.special_ids
    assert last in templater.turn_ends or last == tokenizer.eos_token_id


def calling(name, arguments):
    """The fields of a message that calls a function."""
    function = {"name": name, "arguments": arguments}
    return {"tool_calls": [{"type": "function", "id": "abcdefghi", "function": function}]}


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.tools])
def test_a_tool_call_is_learned_whole_and_its_result_is_not(name):
    """Arguments given as JSON text are written once, not quoted twice."""
    tokenizer = family_tokenizer(name)
    call = calling("find_parcel", '{"number": 7}')
    about = {"name": "find_parcel", "description": "looks", "parameters": {}}
    tool = {"type": "function", "function": about}
    messages = (
        Message("user", "Where is it?"),
        Message("assistant", "", extra=call),
        Message("tool", "in Rome"),
        *conversation("", "It is in Rome.", "Thanks", "Bye.").messages[1:],
    )
    templater = Templater(tokenizer)
    row = answer_row(Example(row=1, messages=messages, tools=(tool,)), templater)
    called, *rest = runs(tokenizer, row)
    assert len(rest) == 2
    assert "find_parcel" in called
    assert '"number": 7' in called
    assert "Rome" not in called
    assert called.endswith(tokenizer.eos_token)
    assert "in Rome" in tokenizer.decode(row.input_ids)
    alone = answer_row(Example(row=1, messages=messages[:2], tools=(tool,)), templater)
    assert '"number": 7' in runs(tokenizer, alone)[0]


@pytest.mark.parametrize("name", ["smollm", "llama3", "zephyr"])
def test_an_assistant_that_speaks_first_is_learned(name):
    """A conversation may begin with the assistant, also where a template refuses an empty one."""
    tokenizer = family_tokenizer(name)
    _, *turns = conversation("", "Hello!", "Hi", "What now?").messages
    row = answer_row(Example(row=1, messages=tuple(turns)), Templater(tokenizer))
    assert runs(tokenizer, row) == wanted(name, "Hello!", "What now?")


THOUGHT = "<think>\nwell\n</think>\n\nSecond."


@pytest.mark.parametrize(
    ("name", "said", "expected"),
    [
        ("llama3", ["Well?", "  Yes. "], ["Yes.<|eot_id|>"]),
        ("smollm", ["Well?", "  Yes. "], ["  Yes. <|im_end|>"]),
        ("qwen3", ["One?", "<think>\nhm\n</think>\n\nFirst.", "Two?", THOUGHT],
         ["First.<|im_end|>", THOUGHT + "<|im_end|>"]),
    ],
)  # fmt: skip
def test_space_and_thoughts_are_learned_only_where_the_template_keeps_them(name, said, expected):
    """The last answer's thought is learned; earlier ones are gone, as when the model is served."""
    assert learned(name, *said) == expected


LOOP, ANSWER = "{% for m in messages %}", "<|im_start|>assistant\n{% endif %}"
TOOL = {"type": "function", "function": {"name": "find_parcel"}}


@pytest.mark.parametrize(
    ("example", "template", "notes"),
    [
        (conversation("Well?", "Yes.", weights=(1, 0.5)), CHATML,
         ["a message has a weight other than 0 and 1: it counts as 1"]),
        (conversation("What does <|im_end|> do?", "It ends a turn."), CHATML,
         ["a mark of the chat template"]),
        (  # The model is asked otherwise than it was trained.
            conversation("Well?", "Yes."),
            CHATML.replace(ANSWER, ANSWER.replace("{%", "<think>\n{%")),
            ["begun by the template in another way"],
        ),
        (
            structs.replace(conversation("Where?", "Here.", system="Be kind."), tools=(TOOL,)),
            CHATML.replace(LOOP, "{% for m in messages if m.role != 'system' %}"),
            [
                "system turns are left out or rewritten by the chat template",
                "tools are not shown to the model",
            ],
        ),
    ],
    ids=["weight between", "mark inside", "prompt never shown", "left out"],
)  # fmt: skip
def test_what_a_template_does_to_a_row_is_counted(example, template, notes):
    """It counts marks inside messages, odd weights, other prompts, and missing tools or turns."""
    tokenizer = with_template(template)
    templater = Templater(tokenizer)
    row = answer_row(example, templater)
    assert runs(tokenizer, row) == [f"{example.messages[-1].content}<|im_end|>"]
    found = sorted(templater.notes)
    assert len(found) == len(notes)
    assert [said for said, note in zip(notes, found, strict=True) if said not in note] == []


@pytest.mark.parametrize(
    ("example", "template", "said"),
    [
        (
            Example(
                row=1,
                messages=(
                    Message("user", "Where?"),
                    Message("assistant", "", extra=calling("find_parcel", {})),
                ),
            ),
            CHATML,
            "does not write tool calls",
        ),
        (conversation("Where?", "It is here."),
         CHATML.replace("{{ m.content }}", "{{ m.content[:3] }}"), "hides where an answer"),
    ],
    ids=["a call that is dropped", "an answer that is cut"],
)  # fmt: skip
def test_a_template_that_hides_answers_is_refused(example, template, said):
    """A row whose calls or answers a template changes is refused, not guessed or learned empty."""
    with pytest.raises(Unusable, match=said):
        answer_row(example, Templater(with_template(template)))


@pytest.fixture
def data(tmp_path):
    rows = [chat("Where is it?", "Here [bold]."), chat("Nothing?", "")] * 30
    return write_rows(tmp_path / "data.jsonl", rows)


def printed(shown, **options) -> str:
    out = io.StringIO()
    print_row(shown, Console(file=out, width=100, **options))
    return out.getvalue()


def test_the_learned_part_stands_between_marks_or_is_coloured_on_a_terminal(data, tiny_model):
    """Double brackets mark what is learned where there is no colour; on a terminal it is green."""
    shown = show_row(data, row=1, model=str(tiny_model))
    (part,) = shown["parts"]
    assert part["learned_tokens"] < part["tokens"]
    marked = "\nWhere is it?<|im_end|>\n<|im_start|>assistant\n[[Here [bold].<|im_end|>]]\n"
    assert "<|im_start|>user" + marked in printed(shown)
    terminal = {"force_terminal": True, "color_system": "standard"}
    text = printed(shown, **terminal)
    assert "\x1b[1;32mHere [bold].<|im_end|>\x1b[0m" in text
    assert "[[" not in text
    assert "[[Here" in printed(shown, **terminal, no_color=True)


def test_without_a_model_the_plain_template_is_shown(data):
    """The mask is shown in the plain template, which is said, and tokens are not counted."""
    shown = show_row(data, row=1)
    assert shown["template"].startswith("no model was named")
    assert shown["parts"][0]["tokens"] is None
    assert "User: Where is it?\n\nAssistant:[[ Here [bold].<|end|>]]" in printed(shown)


@pytest.mark.light
def test_a_row_that_is_left_out_says_why(data):
    """A row that no trainer would use is shown with the reason."""
    text = printed(show_row(data, row=2))
    assert "This row is left out of the training, and counted: no answer to learn from" in text


def test_pairs_and_prompts_are_shown_as_they_are_trained(tmp_path):
    """A pair shows both answers behind their prompt; a question shows its answer beside it."""
    pairs = [{"prompt": f"Question {n}?", "chosen": "Yes.", "rejected": "No."} for n in range(5)]
    parts = show_row(write_rows(tmp_path / "pairs.jsonl", pairs), row=3)["parts"]
    for part, answer in zip(parts, ("Yes.<|end|>", "No.<|end|>"), strict=True):
        first, *_, last = part["stretches"]
        assert "Question 2?" in first["text"]
        assert not first["learned"]
        assert last["text"].strip() == answer
    sums = [{"prompt": f"What is {n} + {n}?", "ground_truth": str(2 * n)} for n in range(5)]
    (part,) = show_row(write_rows(tmp_path / "sums.jsonl", sums), row=3)["parts"]
    assert part["answer"] == "4"
    assert not any(stretch["learned"] for stretch in part["stretches"])


def test_control_characters_of_a_row_do_not_reach_the_terminal(tmp_path):
    """A row cannot move the cursor or change colours by itself."""
    rows = [{"prompt": f"{n} \x1b[2J?", "completion": "ok \x07"} for n in range(3)]
    text = printed(show_row(write_rows(tmp_path / "data.jsonl", rows), row=1))
    assert "\x1b" not in text
    assert "\\x1b[2J" in text


def test_the_check_command_shows_a_row_that_a_process_of_its_own_reads(data, tiny_model, call):
    """With --json it is one document, and a row that is not there is the user's error."""
    code, out, _ = call("check", data, "--show-row", 1, "--model", tiny_model)
    assert code == 0
    assert "[[Here [bold].<|im_end|>]]" in out
    document = json.loads(call("check", data, "--show-row", 1, "--json")[1])
    assert document["schema_version"] == 1
    learned = [stretch["learned"] for stretch in document["parts"][0]["stretches"]]
    assert learned == [False, True, False]
    for row, said in (
        (61, ("there is no row 61", "it has 60 rows, counted from 1")),
        (0, ("rows are counted from 1",)),
    ):
        code, _, told = call("check", data, "--show-row", row)
        assert code == 2
        assert all(words in told for words in said)
