"""The first screen of every answer: short, in daily words, nothing twice; and each remedy's first step
to type, its cost, its measure, and what helps then."""

import io
import json
import random
import re
import shlex
from itertools import product

import click
import pytest
from rich.console import Console

from advisor import Answers
from advisor.advice.case import REMEDIES_OF_GATE
from advisor.cli import advise as command
from advisor.ground.errors import InputError
from advisor.methods import methods, remedies, remedy, schemes
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
    found = [f"{len(lines)} lines"] if len(lines) > 36 else []
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
    """At most 36 lines of 80 columns; 25 of nine in ten trainings that people asked about, and of
    three in four that nobody would, each with the most warnings and the longest commands.
    """
    lengths = {True: [], False: []}
    for place, advice in enumerate(answers(batch)):
        assert not faults(advice), advice.situation.answers
        is_public = place < len(PUBLIC[batch::BATCHES])
        if advice.recommendation.composition.chain and advice.fits:
            lengths[is_public].append(printed(advice).count("\n"))
    for is_public, share in ((True, 0.1), (False, 0.25)):
        long = [length for length in lengths[is_public] if length > 25]
        assert len(long) <= 1 + share * len(lengths[is_public])


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
    for also, chain, scheme, per_task, (rows, scored) in every:
        name = f"{also}{chain}+{scheme}{per_task}"
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
    assert "Training every weight of a model" in first_screen(advice).labelled["Why"][0].text


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
    assert not re.search(rf"with your {stated.get('data_rows')} examples", text)


# What the answer to a gate can be, with a situation that leads there.
LEADS_TO = {
    "prompting": ("--task", "qa", "--data-kind", "none"),
    "rag": ("--task", "qa", "--signal", "needs_citations"),
    "tool_use": ("--task", "tool_use", "--data-kind", "none"),
    "constrained_decoding": ("--task", "structured_output", "--data-kind", "none"),
    "bigger_model": ("--task", "reasoning", "--signal", "base_model_never_succeeds"),
}
TRAINED = ("--task", "qa", "--data-kind", "paired", "--data-rows", "3000")
SITUATIONS = {
    **LEADS_TO,
    "training alone": TRAINED,
    # Whoever tried retrieval is not told to set it up, beside a training or alone.
    **{
        f"a search that is there, and {kind}": (
            "--task", "qa", "--data-kind", kind, "--data-rows", 3000, "--signal", "rag_tried",
        )
        for kind in ("raw_text", "paired")
    },
    "what must stay in the house is not sent out": (*LEADS_TO["rag"], "--priority", "privacy"),
    # A prompt that was said to be good enough is not said again once it was not.
    "a prompt that is good enough": ("--task", "qa", "--signal", "prompt_meets_quality_bar"),
    # Beside training the search's steps say what each half is for.
    "two halves": (
        "--task", "customer_service", "--data-kind", "paired", "--data-rows", 3000, "--depth", "style",
        "--signal", "facts_change_often",
    ),
}  # fmt: skip
FORMS = (("--json",), (), ("--why",))


@pytest.mark.parametrize("name", SITUATIONS)
def test_a_remedy_has_a_first_step(approved, call, name):
    """Both ways have whole commands to paste, a cost and a score, in a dozen lines or so."""
    flags = ("--gpu", "unknown", *SITUATIONS[name])
    (_, out, _), (_, short, _), (_, whole, _) = (call(*flags, *one) for one in FORMS)
    found = json.loads(out)["recommendation"]
    section = whole.split("What to do next")[1].split("\n\n")[0].splitlines()
    assert len(section) <= 15 or found["stages"]
    last = short.rstrip().split("\n\n")[-1].splitlines()
    approved([found["composition"], found["next_steps"], last, section])


def test_every_remedy_of_the_gate_has_a_file_and_steps():
    """The flags, signals and answers that they name exist; an unknown one is told with them."""
    answered = {name for names, _ in REMEDIES_OF_GATE.values() for name in names}
    # The last resort where nothing fits has its ways out, and another tool steps of its own.
    assert answered | {"smaller_model", OTHER_TOOL} == set(remedies())
    facts = load_facts()
    known = {fact.flag for fact in facts.values()} | {"--signal"}
    for one in map(remedy, set(remedies()) - {"smaller_model", OTHER_TOOL}):
        assert one.first
        assert one.measure
        words = shlex.split(one.helps_then.replace("`", "'").replace("'s ", "s "))
        flags = {word for word in words if word.startswith("--")}
        assert flags
        assert flags <= known
        named = [words[i + 1].rstrip(".") for i, word in enumerate(words) if word == "--signal"]
        assert all(facts[name].signal for name in (*named, *one.again.get("signals", ())))
        assert set(one.again) - {"signals"} <= set(facts)
        assert one.again["data_path"] in one.write
        assert one.again["data_path"] in one.helps_then
    with pytest.raises(InputError, match="prompting, rag"):
        remedy("hoping")


@pytest.mark.parametrize("form", [("--json",), ()], ids=["json", "page"])
def test_a_plan_asked_for_where_nothing_is_trained(approved, call, tmp_path, form):
    """It is exit code 3 with the whole answer and no file; `advise run` too starts nothing."""
    asked = (*form, "--gpu", "unknown", *LEADS_TO["rag"])
    (code, out, err), (_, of_run, _) = ended = call(*asked, "--plan", "p.yaml"), call("run", *asked)
    assert not (tmp_path / "p.yaml").exists()
    if form:
        document = json.loads(out)
        assert json.loads(of_run)["recommendation"]["composition"] == "rag"
        out = [document["plan"], document["missing"]]
    approved([code, out, err, ended[1][0], ended[1][2]])


def test_why_prints_the_whole_answer(call):
    """And changes nothing of a document, which holds all of it: a word on standard error says so."""
    flags = (*TRAINED, "--gpu", "unknown")
    _, short, _ = call(*flags)
    _, whole, _ = call(*flags, "--why")
    assert ("Why not the others" in whole, "Why not the others" in short) == (True, False)
    assert len(short.splitlines()) < 30 < len(whole.splitlines())
    _, plain, _ = call(*flags, "--json")
    code, document, err = call(*flags, "--json", "--why")
    assert (code, document, "--why has no effect with --json" in err) == (0, plain, True)


def test_what_was_chosen_by_hand_is_what_the_next_line_trains(call):
    """The lines to type carry the choice, and what speaks against it stands in place of why."""
    flags = (*TRAINED, "--gpu", "RTX 4090")
    code, out, _ = call(*flags, "--choose", "sft+adapter", "--force")
    assert (code, "(sft+adapter, which you chose)" in " ".join(out.split())) == (0, True)
    assert "\nAgainst  " in out
    assert "sft+lora: the rules recommend it here" in out
    assert "--data examples.jsonl --choose sft+adapter --force --dry-run" in out
    assert "Unsure" not in out
    _, whole, _ = call(*flags, "--choose", "sft+adapter", "--force", "--why")
    assert "What would change the answer" not in whole
    assert "--choose sft+adapter --force" in whole


def test_a_smaller_model_is_one_of_some_size(call):
    """No change to a model of 0 parameters is promised."""
    flags = (
        "--json --task code --budget low --gpu 'A100 40GB' --gpus 4 --data-kind paired"
        " --data-rows 21210 --data-tokens 3181500 --signal base_model_never_succeeds"
        " --signal host_memory_limited=no"
    )
    changes = [flip["change"] for flip in json.loads(call(*shlex.split(flags))[1])["flips"]]
    sizes = [change.get("params_b", change.get("model_params_b")) for change in changes]
    assert [size for size in sizes if size is not None] == [0.65]
