"""Numbers, paths and cards as people type them, and the machine as they read it."""

import re
from typing import Any

import pytest

from advisor.commands.wizard import _refused
from advisor.ground.types import Answer, AnswerSet
from advisor.situation.build import model_folder
from advisor.situation.names import NamedModel, NameLookup
from advisor.wizard import Checks
from advisor.wizard.asking import machine_lines
from advisor.wizard.prompts import read_number
from tests.render.example_advice import CPU, PROBED_4090, UNKNOWN_HARDWARE
from tests.wizard.scripted import FACTS, ScriptedUi, answers_of, known

NUMBERS = {
    "5000": 5000, "5,000": 5000, "5 000": 5000, "5k": 5000, "5 K": 5000, "1.5k": 1500, "0": 0,
    "about 200": 200, "~2m": 2_000_000, "1,234,567": 1_234_567, "5'000": 5000,
}  # fmt: skip


@pytest.mark.parametrize("text", NUMBERS)
def test_numbers_are_read_as_people_write_them(text):
    """Thousands signs, k and m are understood."""
    assert read_number(text, FACTS["data_rows"]) == NUMBERS[text]


@pytest.mark.parametrize(
    ("text", "why"),
    [("5.000", "two ways"), ("2.5", "not a whole number")]
    + [(text, "not a number") for text in ("many", "-3", "5,00", "1e3", "nan", "10 20")],
)
def test_numbers_that_can_mean_two_things_are_not_guessed(text, why):
    """What is no number, could be two, or is too small, is asked for again with the reason."""
    with pytest.raises(ValueError, match=why):
        read_number(text, FACTS["data_rows"])
    with pytest.raises(ValueError, match="at least 1"):
        read_number("0", FACTS["n_tasks"])


def test_a_folder_without_a_model_is_refused_and_asked_for_again(tmp_path):
    """Who has a model that scores answers names its folder; another folder is told at once."""
    (tmp_path / "config.json").write_text("{}")
    ui = ScriptedUi("Be a general assistant to talk to", "Yes", str(tmp_path.parent), str(tmp_path))
    wanted = ("reward_model_available", "reward_model")
    checks = Checks(reward_model=_refused(model_folder))
    stated = AnswerSet(known={"data_kind": Answer(value="preference", origin="flag")})
    answers = answers_of(ui, *wanted, earlier=stated, checks=checks)
    assert answers.value("reward_model") == str(tmp_path)
    assert any("holds no model" in line for line in ui.said)


def asked_about_gpu(*replies: str, hardware=PROBED_4090) -> tuple[dict[str, Any], ScriptedUi]:
    """The answers about the card, with every other question left out."""
    ui = ScriptedUi("Write texts", *replies)
    answers = answers_of(ui, "gpu", hardware=hardware)
    return {fact: value for fact, value in known(answers).items() if fact.startswith("gpu")}, ui


@pytest.mark.parametrize(
    ("replies", "expected"),
    [
        (["Use this machine"], {}),
        (["No GPU"], {"gpu": "none"}),
        (["I don't know"], {"gpu": "unknown"}),
        (["Another card", "RTX 4090"], {"gpu": "RTX 4090"}),
        (["Another card", "4 x RTX 4090"], {"gpu": "RTX 4090", "gpus": 4}),
        (["Another card", "cpu"], {"gpu": "none"}),
        (
            ["Another card", "Mystery 9000 24 GB"],
            {"gpu": "Mystery 9000 24 GB", "gpu_memory_gib": 24.0},
        ),
        (["Another card", "2x Mystery", ""], {"gpu": "unknown"}),
        (["Another card", "Mystery", "RTX 4090"], {"gpu": "RTX 4090"}),
        (["Another card", ""], {"gpu": "unknown"}),
        (["Another card", "NVIDIA GeForce RTX 4060 Laptop GPU"], {"gpu": "RTX 4060 Laptop"}),
        (
            ["Another card", "3080 laptop", "RTX 3080 Laptop with 16 GB"],
            {"gpu": "RTX 3080 Laptop", "gpu_memory_gib": 16},
        ),
        (
            ["Another card", "M3 Max", "Apple M3 Max with 64 GB"],
            {"gpu": "Apple M3 Max", "gpu_memory_gib": 64},
        ),
        (["Another card", "M3 Max", "I don't know"], {"gpu": "Apple M3 Max", "gpu_memory_gib": 36}),
        (["Another card", "2x H100", "H100 NVL 94GB"], {"gpu": "H100 NVL 94GB", "gpus": 2}),
        (["Another card", "A100 80"], {"gpu": "A100 SXM4 80GB"}),
        (["Another card", "4060 laptop 12GB", "RTX 4060 Laptop"], {"gpu": "RTX 4060 Laptop"}),
        (["Another card", "<", "Use this machine"], {}),
    ],
)
def test_the_card_is_this_one_another_none_or_not_known(replies, expected):
    """This machine leaves it to the probe; a name, count and memory are read from one line."""
    assert asked_about_gpu(*replies)[0] == expected


@pytest.mark.parametrize(
    ("hardware", "offered"),
    [(CPU, ["Use this machine", "Another card"]), (UNKNOWN_HARDWARE, ["Another card", "No GPU"])],
)
def test_a_machine_without_a_card_is_not_asked_twice(hardware, offered):
    """If a probe found none, "no GPU" is no choice; if nothing is known, "this machine" is not."""
    ui = asked_about_gpu("I don't know", hardware=hardware)[1]
    assert ui.offered[-1] == [*offered, "I don't know", "Back"]


def test_an_unknown_card_is_asked_for_again_and_no_memory_suggested():
    """It is typed again, by a near name or its memory, with no flag or size to copy."""
    _, ui = asked_about_gpu("Another card", "RTX 4095", "RTX 4095 24 GB")
    said = " ".join((*ui.said[:-1], *ui.asked[2:]))
    assert "No card called RTX 4095 is known here. Did you mean RTX 4090" in said
    assert not re.search("--gpu|such as|24GB", said)


@pytest.mark.parametrize("typed", ["99999x RTX 4090", "RTX 4090 x 50000"])
def test_a_count_that_is_a_slip_of_the_keyboard_is_asked_again(typed):
    """Ten thousand cards are enough for anybody."""
    values, ui = asked_about_gpu("Another card", typed, "RTX 4090")
    assert values == {"gpu": "RTX 4090"}
    assert any("cards are not possible" in text for text in ui.said)


def test_the_probe_is_shown_before_the_first_question():
    """The machine comes first, in one or two lines."""
    assert machine_lines(PROBED_4090) == [
        "This machine has NVIDIA GeForce RTX 4090 with 24.0 GiB (22.5 GiB free).",
        "Besides: 16 processor cores, 64.0 GiB of main memory, 200 GiB of free disk.",
    ]
    first, *_, last = machine_lines(CPU)
    assert first == "This machine has no graphics card (GPU) that can be used for training."
    assert last == "no NVIDIA driver found"
    assert asked_about_gpu("Use this machine")[1].said[0] == machine_lines(PROBED_4090)[0]


NEAR = (NamedModel(id="Qwen/Qwen3-8B", about="8.19B parameters"),)


def meant(name: str) -> NameLookup:
    """A hub of one model."""
    if name in ("Qwen/Qwen3-8B", "Qwen3-8B"):
        return NameLookup(id="Qwen/Qwen3-8B", note="read as Qwen/Qwen3-8B; 8.19B parameters")
    if name == "./empty":
        return NameLookup(note="./empty: no config.json in this folder", wrong=True)
    if name == "acme/own":
        return NameLookup(note="acme/own: the hub could not be reached")
    return NameLookup(near=NEAR if "qw" in name else (), misspelt=name == "qwn")


QWEN = {"model": "Qwen/Qwen3-8B"}


@pytest.mark.parametrize(
    ("replies", "expected", "words"),
    [
        # A name in another spelling becomes the hub's, and what it is read as is said.
        (["Qwen3-8B"], QWEN, "read as Qwen/Qwen3-8B"),
        # Neither is a dead end: to type it again, or to leave it to a suggestion.
        (["xyz", "Type another name", "Qwen3-8B"], QWEN, ""),
        (["xyz", "I don't know"], {}, ""),
        # One that nothing knows is kept with its size, which is asked for unless its name says it.
        (["our model", "Keep our model", "8B"], {"model": "our model", "model_params_b": 8}, ""),
        (["our model 13B", "Keep our model 13B"], {"model": "our model 13B"}, ""),
        # An id of the hub can be kept without a network, and why it was not found is said.
        (["acme/own", "Keep acme/own", ""], {"model": "acme/own"}, "the hub could not be reached"),
        # A folder that is no model is corrected at once.
        (["./empty", "Qwen3-8B"], QWEN, "no config.json"),
        # One of several is chosen from a list; a misspelt name is called unknown.
        (["qw", "Qwen/Qwen3-8B"], QWEN, "Which model is meant"),
        (["qwn", "Qwen/Qwen3-8B"], QWEN, "Did you"),
    ],
)
def test_a_name_is_read_kept_or_asked_for_again(replies, expected, words):
    """Whatever is typed ends in a model, or in none; a list of models shows what each is."""
    ui = ScriptedUi("Write code", *replies)
    answers = answers_of(ui, "model", checks=Checks(models=meant))
    assert ui.replies == []
    assert known(answers) == {"task": "code", **expected}
    assert any(words in text for text in (*ui.said, *ui.asked))
    assert (ui.helps[-1][0] == "8.19B parameters") is (replies[0] in ("qw", "qwn"))
