"""Masks under the chat templates of many model families: exactly what the assistant says is
learned.
"""

from copy import deepcopy
from itertools import groupby

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import strategies as st

from advisor.data.example import Example, Message
from tests.conftest import examples
from tests.trainers.families import CHATML, FAMILIES, family_tokenizer
from trainers.rows import IGNORED, Templater
from trainers.rows.conversation import answer_row
from trainers.rows.row import Row, Unusable

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


def conversation(*said: str, system: str | None = None, weights: tuple[float, ...] = ()) -> Example:
    turns = [
        Message(("user", "assistant")[place % 2], text, weights[place] if weights else 1.0)
        for place, text in enumerate(said)
    ]
    return Example(
        row=1, messages=tuple([Message("system", system)] if system else []) + tuple(turns)
    )


@pytest.mark.parametrize("name", FAMILIES)
@FEW
@given(turns=st.lists(st.tuples(SAID, SAID), min_size=1, max_size=3), system=st.none() | SAID)
def test_exactly_what_the_assistant_says_is_learned(name, turns, system):
    """Whatever is said: each run of learned tokens reads as the answer and the token that ends it,
    and nothing else is learned.
    """
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    row = answer_row(
        conversation(
            *[text for turn in turns for text in turn], system=system if family.system else None
        ),
        Templater(tokenizer),
    )
    answers = [answer for _, answer in turns]
    assert runs(tokenizer, row) == [
        *(family.middle(answer) for answer in answers[:-1]),
        family.last(answers[-1]),
    ]
    assert row.expected == answers[-1]


@pytest.mark.parametrize("name", FAMILIES)
def test_a_long_chat_is_learned_as_a_short_one_with_few_renderings(name, monkeypatch):
    """Of twenty answers exactly each is learned; the chat is rendered no more often than one of
    ten, where the template writes all turns alike.
    """
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    renderings = []
    render = Templater.render
    monkeypatch.setattr(
        Templater, "render", lambda *args, **keys: renderings.append(1) or render(*args, **keys)
    )
    for turns in (10, 20):
        said = [text for place in range(turns) for text in (f"Question {place}?", f"Yes, {place}.")]
        renderings.append(0)
        row = answer_row(conversation(*said), Templater(tokenizer))
    answers = [f"Yes, {place}." for place in range(20)]
    assert runs(tokenizer, row) == [
        *(family.middle(answer) for answer in answers[:-1]),
        family.last(answers[-1]),
    ]
    first = renderings.index(0, 1)
    assert sum(renderings[:first]) == sum(renderings[first:]) < 30


@pytest.mark.parametrize("name", FAMILIES)
@FEW
@given(first=SAID, second=SAID, third=SAID, fourth=SAID)
@example(first="a", second="0", third="0", fourth="0")  # gpt-oss writes "final" before an answer
def test_weight_0_is_read_but_not_learned(name, first, second, third, fourth):
    """An answer of weight 0 stays in the text and out of the loss, in every template."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    row = answer_row(
        conversation(first, second, third, fourth, weights=(1, 0, 1, 1)), Templater(tokenizer)
    )
    assert runs(tokenizer, row) == [family.last(fourth)]
    assert second in tokenizer.decode(row.input_ids)
    early = answer_row(
        conversation(first, second, third, fourth, weights=(1, 1, 1, 0)), Templater(tokenizer)
    )
    assert runs(tokenizer, early) == [family.middle(second)]


@pytest.mark.parametrize("name", FAMILIES)
def test_an_answer_is_not_taken_for_the_same_one_of_weight_0(name):
    """Of two turns that say the same, the one with a weight is learned."""
    family, tokenizer = FAMILIES[name], family_tokenizer(name)
    said = ("One?", "Yes.", "Well?", "No.", "Well?", "No.", "Now?", "Bye.")
    row = answer_row(conversation(*said, weights=(1, 1, 1, 0, 1, 1, 1, 1)), Templater(tokenizer))
    assert runs(tokenizer, row) == [*map(family.middle, ("Yes.", "No.")), family.last("Bye.")]
    learned = [label != IGNORED for label in row.labels]
    starts = [at for at in range(1, len(learned)) if learned[at] and not learned[at - 1]]
    assert tokenizer.decode(row.input_ids[: starts[1]]).count("No.") == 1


@pytest.mark.parametrize("name", FAMILIES)
def test_the_last_learned_token_ends_the_turn(name):
    """Each row ends its answer with a special token, which generation is told to stop at."""
    tokenizer = family_tokenizer(name)
    templater = Templater(tokenizer)
    row = answer_row(conversation("Where is it?", "Here."), templater)
    last = [label for label in row.labels if label != IGNORED][-1]
    assert last in templater.special_ids
    assert last in templater.turn_ends or last == tokenizer.eos_token_id


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompt_is_what_a_server_sends(name):
    """The sample prompt is the template's own text for an answer to come."""
    tokenizer = family_tokenizer(name)
    row = answer_row(conversation("Where is it?", "Here."), Templater(tokenizer))
    assert row.prompt == tokenizer.apply_chat_template(
        [{"role": "user", "content": "Where is it?"}], tokenize=False, add_generation_prompt=True
    )


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.tools])
def test_a_tool_call_is_learned_whole_and_its_result_is_not(name):
    """Calls are what the assistant says; what the tool returns is read only.

    Arguments given as JSON text are written once, not quoted twice.
    """
    tokenizer = family_tokenizer(name)
    call = {
        "type": "function",
        "id": "abcdefghi",
        "function": {"name": "find_parcel", "arguments": '{"number": 7}'},
    }
    tool = {
        "type": "function",
        "function": {"name": "find_parcel", "description": "looks", "parameters": {}},
    }
    messages = (
        Message("user", "Where is it?"),
        Message("assistant", "", extra={"tool_calls": [call]}),
        Message("tool", "in Rome"),
        Message("assistant", "It is in Rome."),
        Message("user", "Thanks"),
        Message("assistant", "Bye."),
    )
    templater = Templater(tokenizer)
    row = answer_row(Example(row=1, messages=messages, tools=(tool,)), templater)
    learned = runs(tokenizer, row)
    assert len(learned) == 3
    assert "find_parcel" in learned[0]
    assert '"number": 7' in learned[0]
    assert "Rome" not in learned[0]
    assert learned[0].endswith(tokenizer.eos_token)
    assert "in Rome" in tokenizer.decode(row.input_ids)
    alone = answer_row(Example(row=1, messages=messages[:2], tools=(tool,)), templater)
    assert '"number": 7' in runs(tokenizer, alone)[0]


def test_a_template_that_drops_tool_calls_is_refused():
    """A call that the template does not write is no answer: the row is named, not trained on as
    silence.
    """
    call = {"type": "function", "function": {"name": "find_parcel", "arguments": {}}}
    example = Example(
        row=1,
        messages=(
            Message("user", "Where?"),
            Message("assistant", "", extra={"tool_calls": [call]}),
        ),
    )
    with pytest.raises(Unusable, match="does not write tool calls"):
        answer_row(example, Templater(family_tokenizer("smollm")))


def test_what_a_template_leaves_out_is_counted():
    """Tools and turns that a template has no place for are counted."""
    tokenizer = deepcopy(family_tokenizer("smollm"))
    tokenizer.chat_template = CHATML.replace(
        "{% for m in messages %}", "{% for m in messages if m.role != 'system' %}"
    )
    templater = Templater(tokenizer)
    tool = {"type": "function", "function": {"name": "find_parcel"}}
    messages = (
        Message("system", "Be kind."),
        Message("user", "Where?"),
        Message("assistant", "Here."),
    )
    answer_row(Example(row=1, messages=messages, tools=(tool,)), templater)
    assert {note.split(":")[0] for note in templater.notes} == {
        "system turns are left out or rewritten by the chat template",
        "tools are not shown to the model",
    }


def test_a_template_that_hides_answers_is_refused():
    """A template that shortens or rewrites answers cannot be masked: the row is refused, not
    guessed.
    """
    tokenizer = deepcopy(family_tokenizer("smollm"))
    tokenizer.chat_template = CHATML.replace("{{ m.content }}", "{{ m.content[:3] }}")
    with pytest.raises(Unusable, match="hides where an answer"):
        answer_row(conversation("Where?", "It is here."), Templater(tokenizer))


def test_an_assistant_that_speaks_first_is_learned():
    """A conversation may begin with the assistant, also where a template refuses an empty one."""
    for name in ("smollm", "llama3", "zephyr"):
        tokenizer = family_tokenizer(name)
        row = answer_row(
            Example(
                row=1,
                messages=(
                    Message("assistant", "Hello!"),
                    Message("user", "Hi"),
                    Message("assistant", "What now?"),
                ),
            ),
            Templater(tokenizer),
        )
        assert runs(tokenizer, row) == [
            FAMILIES[name].middle("Hello!"),
            FAMILIES[name].last("What now?"),
        ]


def test_thoughts_of_the_last_answer_are_learned():
    """A thought in front of the last answer is what the model writes; earlier thoughts are gone, as
    when it is served.
    """
    tokenizer = family_tokenizer("qwen3")
    row = answer_row(
        conversation(
            "One?", "<think>\nhm\n</think>\n\nFirst.", "Two?", "<think>\nwell\n</think>\n\nSecond."
        ),
        Templater(tokenizer),
    )
    assert runs(tokenizer, row) == [
        "First.<|im_end|>",
        "<think>\nwell\n</think>\n\nSecond.<|im_end|>",
    ]


def test_marks_of_the_template_inside_a_message_are_counted():
    """Text that reads as an end-of-turn token ends the turn early: counted, with the reason."""
    templater = Templater(family_tokenizer("smollm"))
    answer_row(conversation("What does <|im_end|> do?", "It ends a turn."), templater)
    assert any("a mark of the chat template" in note for note in templater.notes)


def test_surrounding_space_is_learned_only_where_the_template_keeps_it():
    """Space that a template strips is not expected of the model; space that it keeps is."""
    for name, expected in (("llama3", "Yes.<|eot_id|>"), ("smollm", "  Yes. <|im_end|>")):
        tokenizer = family_tokenizer(name)
        assert runs(
            tokenizer, answer_row(conversation("Well?", "  Yes. "), Templater(tokenizer))
        ) == [expected]


def test_weights_between_0_and_1_are_counted():
    """A weight that is neither 0 nor 1 is taken as 1, and that is said."""
    templater = Templater(family_tokenizer("smollm"))
    answer_row(conversation("Well?", "Yes.", weights=(1, 0.5)), templater)
    assert list(templater.notes) == ["a message has a weight other than 0 and 1: it counts as 1"]


def test_a_prompt_that_training_never_shows_is_counted():
    """Where the template begins an answer with a thought that the rows do not have, the rows are
    counted: the model is asked otherwise than it was trained.
    """
    tokenizer = deepcopy(family_tokenizer("smollm"))
    tokenizer.chat_template = CHATML.replace(
        "<|im_start|>assistant\n{% endif %}", "<|im_start|>assistant\n<think>\n{% endif %}"
    )
    templater = Templater(tokenizer)
    row = answer_row(conversation("Well?", "Yes."), templater)
    assert runs(tokenizer, row) == ["Yes.<|im_end|>"]
    assert any("begun by the template in another way" in note for note in templater.notes)
