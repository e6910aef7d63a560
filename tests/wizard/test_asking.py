"""Numbers, paths and cards as people type them, and the machine as they read it."""

import re

import pytest

from advisor.commands.wizard import _refused
from advisor.ground.types import Answer, AnswerSet
from advisor.situation.build import model_folder
from advisor.situation.names import NamedModel, NameLookup
from advisor.wizard.asking import machine_lines
from advisor.wizard.outcome import Checks
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


# Another machine, if it is not the one with the card; what is chosen and typed.
MACHINES = {"no card": CPU, "nothing known": UNKNOWN_HARDWARE}
CARDS_TYPED = (
    "Use this machine", "No GPU", "I don't know", "Another card | RTX 4090",
    "Another card | 4 x RTX 4090", "Another card | cpu", "Another card | Mystery 9000 24 GB",
    "Another card | 2x Mystery | ", "Another card | Mystery | RTX 4090", "Another card | ",
    "Another card | NVIDIA GeForce RTX 4060 Laptop GPU",
    "Another card | 3080 laptop | RTX 3080 Laptop with 16 GB",
    "Another card | M3 Max | Apple M3 Max with 64 GB", "Another card | M3 Max | I don't know",
    "Another card | 2x H100 | H100 NVL 94GB", "Another card | A100 80",
    "Another card | 4060 laptop 12GB | RTX 4060 Laptop", "Another card | < | Use this machine",
    # A machine without a card is not asked twice: "no GPU" is no choice if a probe found none,
    # "this machine" is not if nothing is known.
    "no card | I don't know", "nothing known | I don't know",
    # Typed again, by a near name or its memory, with no flag or size to copy.
    "Another card | RTX 4095 | RTX 4095 24 GB",
    # Ten thousand cards are enough for anybody.
    "Another card | 99999x RTX 4090 | RTX 4090", "Another card | RTX 4090 x 50000 | RTX 4090",
)  # fmt: skip


@pytest.mark.parametrize("typed", CARDS_TYPED)
def test_the_card_is_this_one_another_none_or_not_known(approved, typed):
    """This machine leaves it to the probe; a name, count and memory are read from one line."""
    replies = typed.split(" | ")
    hardware = MACHINES.get(replies[0], PROBED_4090)
    ui = ScriptedUi("Write texts", *(reply for reply in replies if reply not in MACHINES))
    answers = known(answers_of(ui, "gpu", hardware=hardware))
    assert not re.search("--gpu|such as", " ".join([*ui.said, *ui.asked[2:]]))
    approved([answers, ui.said[5:], ui.asked[1:], ui.offered[1:]])


@pytest.mark.parametrize("hardware", [PROBED_4090, CPU], ids=["card", "processor"])
def test_the_probe_is_shown_before_the_first_question(approved, hardware):
    """The machine comes first, in one or two lines."""
    ui = ScriptedUi("Write texts")
    answers_of(ui, "none", hardware=hardware)
    assert ui.said[: len(machine_lines(hardware))] == machine_lines(hardware)
    approved(machine_lines(hardware))


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


NAMES_TYPED = (
    # A name in another spelling becomes the hub's, and what it is read as is said.
    "Qwen3-8B",
    # Neither is a dead end: to type it again, or to leave it to a suggestion.
    "xyz | Type another name | Qwen3-8B", "xyz | I don't know",
    # One that nothing knows is kept with its size, which is asked for unless its name says it.
    "our model | Keep our model | 8B", "our model 13B | Keep our model 13B",
    # An id of the hub can be kept without a network, and why it was not found is said.
    "acme/own | Keep acme/own | ",
    # A folder that is no model is corrected at once.
    "./empty | Qwen3-8B",
    # One of several is chosen from a list; a misspelt name is called unknown.
    "qw | Qwen/Qwen3-8B", "qwn | Qwen/Qwen3-8B",
)  # fmt: skip


@pytest.mark.parametrize("typed", NAMES_TYPED)
def test_a_name_is_read_kept_or_asked_for_again(approved, typed):
    """Whatever is typed ends in a model, or in none; a list of models shows what each is."""
    ui = ScriptedUi("Write code", *typed.split(" | "))
    answers = answers_of(ui, "model", checks=Checks(models=meant))
    assert ui.replies == []
    approved([known(answers), ui.said[5:], ui.asked[1:], ui.offered[1:], ui.helps[1:]])
