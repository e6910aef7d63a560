"""The first screen of every answer: short, in daily words, nothing twice, a next step to type."""

import io
import random
import re
import shlex
from itertools import product

import click
import pytest
from rich.console import Console

from advisor import Answers
from advisor.cli import advise as command
from advisor.ground.errors import InputError
from advisor.methods import methods, remedies, schemes
from advisor.methods.composition import Composition, parse_composition
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.answer.page import first_screen
from advisor.render.terminal import WHOLE, print_advice, print_whole_answer
from advisor.render.words import what_to_do
from advisor.ruleset.facts import load_facts
from advisor.situation.build import situation_of
from advisor.situation.types import Situation
from tests.advice.public_situations import answers_of, read_situations
from tests.advice.sanity import random_known, situation_for
from tests.advice.situations import UNKNOWN_MACHINE, advice_on, advised, stated
from tests.conftest import scaled
from tests.render.example_advice import advice as example_advice
from tests.render.example_advice import candidate, estimate

PUBLIC = read_situations()[:: max(1, 6 // scaled(1))]
SEEDS, BATCHES = scaled(60), 6


def answers(batch):
    """Advices of public and of random situations; one of four with what would change it."""
    for place, public in enumerate(PUBLIC[batch::BATCHES]):
        situation = situation_of(Answers.from_dict(answers_of(public)), probed=UNKNOWN_MACHINE)
        yield advice_on(situation, flips=place % 4 == 0)
    for seed in range(batch, SEEDS, BATCHES):
        try:
            situation = situation_for(random_known(random.Random(seed)))
            yield advice_on(situation, flips=seed % 24 < BATCHES)
        except InputError:  # what was stated contradicts itself
            continue


def printed(advice, *, width=80, whole=False):
    file = io.StringIO()
    (print_whole_answer if whole else print_advice)(advice, Console(file=file, width=width))
    return file.getvalue()


def parses(line):
    """Raises click's error for a line that `advise` does not understand."""
    words = shlex.split(line)
    assert words[0] == "advise"
    with command.make_context("advise", words[1:]) as context:
        rest = [*context._protected_args, *context.args]
        if rest:
            inner = command.get_command(context, rest[0])
            assert inner is not None, line
            inner.make_context(rest[0], rest[1:], parent=context)


def sentences(text):
    """Every sentence of some length, in the order of the page."""
    parts = re.split(r"(?<=[a-z)])\. |: |; ", " ".join(text.split()))
    return [part.strip(" .-").lower() for part in parts if len(part) > 60]


def faults(advice):
    """What is wrong with the first screen and the whole answer."""
    text, first = printed(advice), first_screen(advice)
    lines = text.rstrip("\n").split("\n")
    commands = [one for step in first.steps for one in step.commands]
    found = [f"{len(lines)} lines"] if len(lines) > 40 else []
    found += [f"wide: {line}" for line in lines if len(line) > 80 and line.strip() not in commands]
    plain = text
    for one in commands:
        plain = plain.replace(one, "")
    said = sentences(plain)
    found += [f"twice: {one}" for one in set(said) if said.count(one) > 1]
    if str(advice.recommendation.composition) not in first.answer and advice.fits:
        found.append("the composition is not named")
    if not lines[-1].endswith(WHOLE["shell"]):
        found.append("where the rest is does not come last")
    ours = [one for one in commands if one.startswith("advise ")]
    outside = advice.recommendation.composition.remedies == (OTHER_TOOL,)
    # The line that trains is the last: that of another engine, where one trains.
    engine = advice.recommendation.engine if advice.fits else None
    last = commands[-1:] if engine is not None else ours[-1:]
    if not (outside and commands) and lines[-2].strip() not in last:
        found.append(f"no next command last: {lines[-2]}")
    for one in ours:
        try:
            parses(one)
        except click.ClickException as error:
            found.append(f"{one}: {error.format_message()}")
    whole = printed(advice, whole=True)
    ends = "advise " if engine is None else last[0]
    if not outside and ends not in whole.rstrip("\n").split("\n")[-1]:
        found.append("no next command ends the whole answer")
    why = sentences(whole)
    found += [f"twice in the whole answer: {one}" for one in set(why) if why.count(one) > 1]
    return found


def test_the_check_finds_what_it_is_for():
    """A line that click refuses, and a sentence that stands there twice."""
    with pytest.raises(click.ClickException):
        parses("advise run --no-such-flag")
    twice = "the model learns from requests with their right answers, whatever the task it is for. "
    assert len(sentences(twice * 2)) == 2
    parses("advise check labels.jsonl --map question=prompt")


@pytest.mark.parametrize("batch", range(BATCHES))
def test_every_answer_has_a_first_screen(batch):
    """At most 40 lines of 80 columns, and nine in ten trainings that people asked about 25."""
    lengths = []
    for place, advice in enumerate(answers(batch)):
        assert not faults(advice), advice.situation.answers
        is_public = place < len(PUBLIC[batch::BATCHES])
        if is_public and advice.recommendation.composition.chain and advice.fits:
            lengths.append(printed(advice).count("\n"))
    assert sum(length > 25 for length in lengths) <= 1 + 0.1 * len(lengths)


@pytest.mark.parametrize("gpu", ["RTX 4090", "A100 80GB", "RTX 4060 8GB"])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-8B", None])
def test_what_most_people_ask_fits_on_a_screen(model, gpu):
    """The sentence, the reasons and the next command stand on 24 lines, a prompt included."""
    known = {"task": "customer_service", "budget": "low", "data_kind": "paired",
             "data_rows": 5000, "data_tokens": 1_500_000, "gpu": gpu}  # fmt: skip
    advice = advice_on(situation_for(known | ({"model": model} if model else {})), flips=True)
    wrapped = sum(max(1, -(-len(line) // 80)) for line in printed(advice).split("\n"))
    assert wrapped - 1 <= 24, printed(advice)


LONGEST = 430  # characters: five lines of a page; three stages for each of several tasks
INSIDE = re.compile(
    rf"\b(?:{'|'.join([*methods().objectives, *schemes(), 'encoder:sft', 'None'])})\b"
)
DOUBLED = re.compile(r"\b(\w+) \1\b|,,|\.\.|  | ,|; ;|, ;")


def first_sentence(composition, **known):
    known = {name: value for name, value in known.items() if value is not None}
    situation = Situation(
        answers=stated(task="other", model="Qwen/Qwen3-8B", **known), hardware=UNKNOWN_MACHINE
    )
    one = candidate(composition, "recommended", (), estimate("unknown"))
    facts = {"reward_model_available": known.get("reward_model_available")}
    said = what_to_do(example_advice(one, situation, facts=facts))
    # A model of which nothing is known has a sentence before it that asks for the size.
    return said.partition("If it fits, ")[2] or said


def sentence_faults(text):
    """What is wrong with a sentence, read as one that knows no machine learning would."""
    found = [f"a word from inside: {one}" for one in INSIDE.findall(text)]
    found += [f"twice: {one.group()}" for one in DOUBLED.finditer(text)]
    found += ["a placeholder"] if re.search(r"[{}]", text) else []
    found += ["no full stop"] if not text.endswith(".") else []
    found += [f"{len(text)} characters"] if len(text) > LONGEST else []
    found += ["an open bracket"] if text.count("(") != text.count(")") else []
    return found


@pytest.mark.parametrize("kind", [None, *load_facts()["data_kind"].values])
def test_every_composition_is_said_in_daily_words(kind):
    """Every chain, scheme and remedy is said without placeholders, repeated words or code."""
    known = product((None, 1200, 2_500_000), (None, True))
    beside = ("", "rag & ", "prompting & ", "tool_use & ")
    every = product(beside, load_facts()["chain"].values, schemes(), ("", "@per_task"), [*known])
    count = 0
    for remedy, chain, scheme, per_task, (rows, scored) in every:
        name = f"{remedy}{chain}+{scheme}{per_task}"
        text = first_sentence(
            parse_composition(name), data_kind=kind, data_rows=rows, reward_model_available=scored
        )
        assert not sentence_faults(text), (name, rows, scored, text)
        assert "Qwen/Qwen3-8B" in text
        count += 1
    assert count > 3000


def test_the_reason_that_decides_is_told_where_room_is_short():
    """Why every weight of a small model is trained, and not only that it is small."""
    model = {"model": "Qwen/Qwen3-0.6B", "gpu": "none"}
    advice = advised(task="customer_service", data_kind="paired", data_rows=2000, **model)
    assert first_screen(advice).labelled["Why"][0].text.startswith("Training every weight of a mo")


def test_every_remedy_alone_is_said_in_daily_words():
    """So is each answer that trains nothing, alone and with another."""
    names = [name for name in remedies() if name != OTHER_TOOL]
    for beside in [*((name,) for name in names), *product(names, names)]:
        text = first_sentence(Composition(remedies=tuple(dict.fromkeys(beside))))
        assert not sentence_faults(text), text
        assert text.startswith("No training is needed: ")


@pytest.mark.parametrize(
    ("chain", "stated", "said"),
    [
        ("cpt>sft", {"data_kind": "raw_text", "data_rows": 300}, "examples of requests and good"),
        ("sft>kto", {"data_kind": "unpaired_feedback", "data_rows": 11}, "your 11 answers that"),
        ("sft>dpo", {"data_kind": "preference", "data_rows": 90}, "better answers of your 90 pairs"),
        ("grpo", {"data_kind": "prompts_with_verifier", "data_rows": 70}, "your 70 problems"),
        ("sft>rm>ppo", {"data_kind": "preference"}, "let the first model practise while the second"),
        ("rloo", {"data_kind": "preference", "data_rows": 90}, "while a scoring model scores its"),
        ("rloo", {"data_kind": "preference", "reward_model_available": True}, "your scoring model"),
    ],
)  # fmt: skip
def test_rows_are_what_they_are(chain, stated, said):
    """Documents, thumbs and problems are not shown as examples, and a judge is not a problem."""
    text = first_sentence(Composition(chain=tuple(chain.split(">")), update="lora"), **stated)
    assert said in text
    rows = stated.get("data_rows")
    assert not re.search(rf"with your {rows} examples", text)
