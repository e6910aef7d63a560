"""The first screen of every answer: short, nothing said twice, and a next step that can be typed."""

import io
import random
import re
import shlex

import click
import pytest
from rich.console import Console

from advisor import Answers
from advisor.cli import advise as command
from advisor.ground.errors import InputError
from advisor.methods.remedies import OTHER_TOOL
from advisor.render.answer.page import first_screen
from advisor.render.terminal import WHOLE, print_advice, print_whole_answer
from advisor.situation.build import situation_of
from tests.advice.public_situations import answers_of, read_situations
from tests.advice.sanity import random_known, situation_for
from tests.advice.situations import UNKNOWN_MACHINE, advice_on
from tests.conftest import scaled

PUBLIC = read_situations()[:: max(1, 6 // scaled(1))]
SEEDS, BATCHES = scaled(60), 6
MOST, USUAL = 40, 25  # lines at 80 columns
RARE = 0.1  # of the answers that train something, longer ones


def answers(batch):
    """Advices of public and of random situations; one of four with what would change it."""
    for place, stated in enumerate(PUBLIC[batch::BATCHES]):
        known = Answers.from_dict(answers_of(stated))
        situation = situation_of(known, probed=UNKNOWN_MACHINE)
        yield advice_on(situation, flips=place % 4 == 0)
    for seed in range(batch, SEEDS, BATCHES):
        try:
            situation = situation_for(random_known(random.Random(seed)))
            yield advice_on(situation, flips=seed % 24 < BATCHES)
        except InputError:  # what was stated contradicts itself
            continue


def printed(advice, *, width=80, whole=False) -> str:
    file = io.StringIO()
    (print_whole_answer if whole else print_advice)(advice, Console(file=file, width=width))
    return file.getvalue()


def parses(line: str) -> None:
    """Raises click's error for a line that `advise` does not understand."""
    words = shlex.split(line)
    assert words[0] == "advise"
    with command.make_context("advise", words[1:]) as context:
        rest = [*context._protected_args, *context.args]
        if rest:
            inner = command.get_command(context, rest[0])
            assert inner is not None, line
            inner.make_context(rest[0], rest[1:], parent=context)


def sentences(text: str) -> list[str]:
    """Every sentence of some length, in the order of the page."""
    parts = re.split(r"(?<=[a-z)])\. |: |; ", " ".join(text.split()))
    return [part.strip(" .-").lower() for part in parts if len(part) > 60]


def faults(advice) -> list[str]:
    """What is wrong with the first screen and the whole answer."""
    text, first = printed(advice), first_screen(advice)
    lines = text.rstrip("\n").split("\n")
    commands = [one for step in first.steps for one in step.commands]
    found = [f"{len(lines)} lines"] if len(lines) > MOST else []
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
    if not (outside and commands) and (not ours or lines[-2].strip() != ours[-1]):
        found.append(f"no next command last: {lines[-2]}")
    for one in ours:
        try:
            parses(one)
        except click.ClickException as error:
            found.append(f"{one}: {error.format_message()}")
    whole = printed(advice, whole=True)
    if not outside and "advise " not in whole.rstrip("\n").split("\n")[-1]:
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
    """At most 40 lines of 80 columns, most of them at most 25, in every situation there is."""
    lengths = []
    for advice in answers(batch):
        assert not faults(advice), advice.situation.answers
        if advice.recommendation.composition.chain and advice.fits:
            lengths.append(printed(advice).count("\n"))
    assert sum(length > USUAL for length in lengths) <= 1 + RARE * len(lengths)


def test_what_most_people_ask_fits_on_a_screen():
    """The sentence, the reasons and the next command stand on 24 lines, a prompt included."""
    for model in ("Qwen/Qwen3-8B", None):
        for gpu in ("RTX 4090", "A100 80GB", "RTX 4060 8GB"):
            known = {"task": "customer_service", "budget": "low", "data_kind": "paired",
                     "data_rows": 5000, "data_tokens": 1_500_000, "gpu": gpu}  # fmt: skip
            known |= {} if model is None else {"model": model}
            advice = advice_on(situation_for(known), flips=True)
            wrapped = sum(max(1, -(-len(line) // 80)) for line in printed(advice).split("\n"))
            assert wrapped - 1 <= 24, printed(advice)
