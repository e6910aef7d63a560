"""Rows: exactly what is learned of them, under many templates and for every objective; check --show-row."""

import io
import json
from collections import Counter
from contextlib import redirect_stdout
from copy import deepcopy
from itertools import groupby
from subprocess import CompletedProcess

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
from trainers.rows import ANSWERS, IGNORED, Templater
from trainers.rows.conversation import PROMPTS, answer_row
from trainers.rows.row import Row, Unusable
from trainers.tools.show_row import main as show_row_main
from trainers.tools.show_row import show_row

torch = pytest.importorskip("torch")
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.data_utils import extract_prompt
from trl.trainer.dpo_trainer import _tokenize

from advisor.ground.errors import InputError
from tests.trainers.fitting import prepare_stage_rows
from trainers.rows.heads import CLASSES, class_columns, class_names
from trainers.rows.preference import (
    FEEDBACK,
    PAIRS,
    feedback_columns,
    pair_rows,
    preference_columns,
    reward_columns,
)
from trainers.stage.trl_trainer import with_ours

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
    assert (runs(tokenizer, row), row.expected) == (wanted(name, *answers), answers[-1])


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
    assert [one for one in ("find_parcel", '"number": 7') if one not in called] == []
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
    """In the model's own template."""
    code, out, _ = call("check", data, "--show-row", 1, "--model", tiny_model)
    assert (code, "[[Here [bold].<|im_end|>]]" in out) == (0, True)


def test_a_row_is_one_document_with_json_and_one_that_is_not_there_an_error(
    data, call, monkeypatch
):
    """Here the tool is run in this process; rows are counted from 1."""

    def run_tool(name, asked, **_):
        with redirect_stdout(io.StringIO()) as out:
            code = show_row_main([asked])
        return CompletedProcess((), code, out.getvalue(), "")

    monkeypatch.setattr("advisor.commands.check.run_tool", run_tool)
    document = json.loads(call("check", data, "--show-row", 1, "--json")[1])
    learned = [stretch["learned"] for stretch in document["parts"][0]["stretches"]]
    assert (document["schema_version"], learned) == (1, [False, True, False])
    for row, said in (
        (61, ("there is no row 61", "it has 60 rows, counted from 1")),
        (0, ("rows are counted from 1",)),
    ):
        code, _, told = call("check", data, "--show-row", row)
        assert (code, [words for words in said if words not in told]) == (2, [])


PAIR = ("chosen_ids", "rejected_ids")


def question(asked: str, *more: Message, row: int = 1, **keys) -> Example:
    return Example(row=row, messages=(Message("user", asked), *more), **keys)


def says(text: str) -> Message:
    return Message("assistant", text)


def preference(asked: str, chosen: str, rejected: str, row: int = 1) -> Example:
    return question(asked, row=row, chosen=(says(chosen),), rejected=(says(rejected),))


@pytest.fixture
def prepared(tiny_tokenizer):
    """`prepared(examples, kind)`: the rows that are kept, of the tiny model's tokenizer."""

    def prepare(examples, kind=ANSWERS, *, tokenizer=tiny_tokenizer, **keys):
        settings = {"seq_len": 512, "truncation": "stop", "holdout": 0.0, "seed": 1, **keys}
        return prepare_stage_rows(examples, Templater(tokenizer), kind=kind, **settings)

    return prepare


def has_note(data, *words):
    """Whether one of its notes has all of these words."""
    return any(all(word in note for word in words) for note in data.notes)


@pytest.mark.parametrize("name", FAMILIES)
@FEW
@given(question=SAID, answers=st.lists(SAID, min_size=2, max_size=2, unique=True))
def test_a_pair_has_one_prompt_and_two_whole_answers(name, question, answers):
    """The prompt is the same tokens for both, answers end their turn, and a text begins once."""
    tokenizer = family_tokenizer(name)
    (row,) = pair_rows(preference(question, *answers), Templater(tokenizer))
    for ids, said in ((row.chosen_ids, answers[0]), (row.rejected_ids, answers[1])):
        end = FAMILIES[name].last(said)
        assert tokenizer.decode([*row.prompt_ids, *ids]).endswith(end)
        assert tokenizer.decode(ids).endswith(end.lstrip())
    table = reward_columns([row])
    if name in ("llama3", "gemma", "mistral"):  # the template is applied once
        begins = tokenizer.bos_token_id
        texts = [ids for side in PAIR for ids in table[side]]
        assert [(ids[0], ids.count(begins)) for ids in texts] == [(begins, 1)] * 2
    assert question in tokenizer.decode(row.prompt_ids)


def test_pairs_are_the_tokens_that_trl_would_make():
    """They are, but for the line end after the last turn, which no model writes."""
    tokenizer = family_tokenizer("smollm")
    asked, said = "Where is my parcel?", ("On its way.", "No idea.")
    (row,) = pair_rows(preference(asked, *said), Templater(tokenizer))
    turns = [chat(asked, answer)["messages"] for answer in said]
    theirs = extract_prompt(dict(zip(("chosen", "rejected"), turns, strict=True)))
    prompt_ids = _tokenize(tokenizer, theirs["prompt"], add_generation_prompt=True)["input_ids"]
    assert list(row.prompt_ids) == prompt_ids
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for side, ours in (("chosen", row.chosen_ids), ("rejected", row.rejected_ids)):
        whole = _tokenize(tokenizer, theirs["prompt"] + theirs[side])["input_ids"]
        assert whole == [*prompt_ids, *ours, *line_end]


LONG_PROMPT = preference("the shop sells tea " * 40, "yes", "no", row=99)


@pytest.mark.parametrize(
    ("kind", "examples", "counts", "notes"),
    [
        (
            PAIRS,
            [
                *(preference(f"Question {n}?", "yes", "no", row=n) for n in range(1, 60)),
                preference("Well?", "yes ", "yes ", row=60),
                question("Well?", row=61, chosen=(says("yes"),)),
            ],
            (59, 2),
            [("both answers are the same", "row 60"), ("no pair", "row 61")],
        ),
        (
            PROMPTS,
            [*(preference(f"Ask {n // 2}?", f"a {n}", "b", row=n) for n in range(40)), LONG_PROMPT],
            (20, 21),
            [
                ("20 rows left out: repeated prompts",),
                ("longer than seq_len less response_tokens, which is 40 (row 99)",),
            ],
        ),
    ],
    ids=["pairs", "prompts"],
)
def test_rows_that_are_none_of_their_kind_are_counted_and_named(
    kind, examples, counts, notes, prepared
):
    """Prompts are never cut, and a prompt that leaves no room for an answer is left out."""
    data = prepared(examples, kind, seq_len=40, truncation="truncate")
    assert (len(data.train), data.dropped) == counts
    assert [words for words in notes if not has_note(data, *words)] == []


@pytest.mark.parametrize(
    ("kind", "examples", "said"),
    [
        (PAIRS, [preference("Well?", "yes", "no"), preference("Well?", "yes ", "yes ", row=60)],
         "row 60: both answers are the same"),
        (ANSWERS,
         [question(f"{n}?", says("Go away."), row=n, good=n % 2 == 0) for n in range(1, 21)],
         "row 1: an answer that people rejected"),
        (PROMPTS, [Example(row=1, text="The shop sells tea.")],
         "row 1: no question that a model could answer"),
    ],
    ids=["pairs", "answers", "prompts"],
)  # fmt: skip
def test_rows_that_are_none_of_their_kind_are_named_if_they_are_many(
    kind, examples, said, prepared
):
    """More than a few bad answers, equal ones or texts with nothing to ask are an error."""
    with pytest.raises(InputError, match=said):
        prepared(examples, kind)


def test_pairs_that_contradict_each_other_are_counted_and_stay_together(prepared):
    """A preference turned round never stands on the other side of the split."""
    rows = [
        preference(f"Question {number}?", f"first {number}", f"second {number}", row=number)
        for number in range(1, 21)
    ]
    turned = preference("Question 3?", "second 3", "first 3", row=30)
    data = prepared([*rows, turned], PAIRS, holdout=0.3)
    assert has_note(data, "2 rows contradict each other", "rows 3, 30")
    assert len({3, 30} & {row.number for row in data.holdout}) != 1
    same = [preference("Well?", f"first {n}", f"second {n}", row=n) for n in range(1, 21)]
    assert len(prepared(same, PAIRS, holdout=0.3).holdout) == 6  # other answers are other rows
    classes = [("Good tea", "a"), ("good  tea", "b"), ("Bad tea", "b")]
    texts = [Example(row=n, text=text, label=name) for n, (text, name) in enumerate(classes, 1)]
    said = "2 rows have the text of another row and another class (rows 1, 2)"
    assert has_note(prepared(texts, CLASSES), said)


def test_cutting_a_pair_keeps_something_of_both_answers(prepared):
    """A pair of which nothing, or nothing different, would be left is left out and counted."""
    long = "the shop sells tea " * 20
    examples = [
        preference("Well?", "yes " + long, "no " + long, row=1),
        preference("Well? " + long, "yes", "no", row=2),
        preference("Now?", long + "a", long + "b", row=3),
    ]
    data = prepared(examples, PAIRS, seq_len=40, truncation="truncate")
    (row,) = data.train
    assert (row.number, row.tokens, data.truncated, data.dropped) == (1, 40, 1, 2)


def test_feedback_keeps_its_verdicts(prepared, tiny_tokenizer):
    """Answers with a verdict become prompt, completion and label; a pair becomes two of them."""
    examples = [
        question("Well?", says("Yes."), row=1, good=True),
        question("Well?", says("Go away."), row=2, good=False),
        preference("Now?", "Soon.", "Never.", row=3),
    ]
    rows = prepared(examples, FEEDBACK).train
    said = [tiny_tokenizer.decode(row.completion_ids).removesuffix("<|im_end|>") for row in rows]
    assert said == ["Yes.", "Go away.", "Soon.", "Never."]
    assert [(row.number, row.label) for row in rows] == [
        (1, True), (2, False), (3, True), (3, False),
    ]  # fmt: skip
    others = [list(rows[place].completion_ids) for place in (3, 0, 1, 2)]
    assert feedback_columns(rows)["KL_completion_ids"] == others


def test_prompts_come_from_any_kind_of_data(prepared, tiny_tokenizer):
    """Each kind gives its question, ready for an answer, and what may be compared with it."""
    examples = [
        preference("One?", "first", "second", row=1),
        question("Two?", says("Because."), row=2),
        question("Three?", says("Bad."), row=3, good=False),
        question("What is 2 + 2?", row=4, answer="4"),
        Example(row=5, text="The cup is broken", label="complaint"),
    ]
    data = prepared(examples, PROMPTS)
    told = [(row.shown, row.answer, row.verifiable) for row in data.train]
    assert told == [
        ("One?", "first", False),
        ("Two?", "Because.", False),
        ("Three?", None, False),
        ("What is 2 + 2?", "4", True),
        ("The cup is broken", "complaint", True),
    ]
    for row in data.train:
        asked = f"<|im_start|>user\n{row.shown}<|im_end|>\n<|im_start|>assistant\n"
        assert tiny_tokenizer.decode(row.prompt_ids) == asked


def test_classes_are_numbered_by_name_and_texts_are_tokenised_without_a_template(prepared):
    """Classes go in the order of names or values, texts get the tokenizer's special tokens."""
    tokenizer = family_tokenizer("gemma")
    examples = [
        Example(row=number, text=f"text {number}", label=("2", "10", "1")[number % 3])
        for number in range(30)
    ]
    data = prepared(examples, CLASSES, tokenizer=tokenizer)
    assert class_names(row.name for row in data.train) == ["1", "2", "10"]
    table = class_columns(data.train, numbers={"1": 0, "2": 1, "10": 2})
    assert tokenizer.decode(table["input_ids"][0]) == "<bos> text 0"
    assert table["labels"][:3] == [1, 2, 0]


def test_every_class_is_trained_on_and_held_out_in_its_share(prepared):
    """A rare class is not lost to the hold-out rows; one of a hundred is held out in its share."""
    examples = [
        Example(row=number, text=f"text {number}", label="often" if number < 100 else "seldom")
        for number in range(110)
    ] + [Example(row=200, text="alone", label="once")]
    for seed in range(5):
        data = prepared(examples, CLASSES, holdout=0.2, seed=seed)
        assert Counter(row.name for row in data.holdout) == {"often": 20, "seldom": 2}
        assert {row.name for row in data.train} == {"often", "seldom", "once"}


@pytest.mark.parametrize("objective", ["dpo", "rm", "kto"])
def test_trls_trainers_take_the_rows_as_they_are(
    objective, prepared, tiny_model, tiny_tokenizer, tmp_path
):
    """A step of TRL's trainer on our rows has the tokens we prepared, and a finite loss."""
    examples = [
        preference(f"Question {number}?", f"Yes, {number}.", "No.", row=number)
        for number in range(8)
    ]
    kind, sides, config, trainer_class, table = {
        "dpo": (PAIRS, PAIR, DPOConfig, DPOTrainer, preference_columns),
        "rm": (PAIRS, PAIR, RewardConfig, RewardTrainer, reward_columns),
        "kto": (FEEDBACK, ("completion_ids",), KTOConfig, KTOTrainer, feedback_columns),
    }[objective]
    data = prepared(examples, kind)
    loader, extra = AutoModelForCausalLM, {}
    if objective == "rm":
        loader, extra = AutoModelForSequenceClassification, {"num_labels": 1}
    args = config(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none",
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, max_length=None,
    )  # fmt: skip
    trainer = with_ours(trainer_class, ())(
        model=loader.from_pretrained(tiny_model, **extra),
        args=args,
        train_dataset=Dataset.from_dict(table(data.train)),
        processing_class=tiny_tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    first = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
    assert first in [[*row.prompt_ids, *getattr(row, side)] for row in data.train for side in sides]
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))


def test_a_conversation_that_the_template_refuses_is_no_pair():
    """A pair whose conversation the template cannot write is refused in its own words."""
    tokenizer = family_tokenizer("gemma")
    answers = {"chosen": (says("Yes."),), "rejected": (says("No."),)}
    example = question("Well?", Message("user", "Now?"), **answers)
    with pytest.raises(Unusable, match="roles must alternate"):
        pair_rows(example, Templater(tokenizer))


@pytest.mark.parametrize(
    ("kind", "name"), [(PAIRS, "prompt_ids"), (PROMPTS, "prompt_ids"), (ANSWERS, "input_ids")]
)
def test_a_system_text_goes_in_front_of_the_question_where_the_template_takes_none(
    kind, name, prepared
):
    """Rows, pairs and prompts get it alike, and the rows are counted."""
    tokenizer = family_tokenizer("gemma")
    messages = (Message("system", "Be kind."), Message("user", "Well?"))
    answers = {"chosen": (says("Yes."),), "rejected": (says("No."),)}
    data = prepared([Example(row=1, messages=messages, **answers)], kind, tokenizer=tokenizer)
    asked = "<bos><start_of_turn>user\nBe kind.\n\nWell?<end_of_turn>\n<start_of_turn>model\n"
    assert tokenizer.decode(getattr(data.train[0], name)).startswith(asked)
    assert any(note.startswith("1 row") and "takes no system turn" in note for note in data.notes)
