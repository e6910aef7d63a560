"""The question which model to start from."""

import pytest

from advisor.ground.types import AnswerSet
from advisor.situation.names import NamedModel, NameLookup
from advisor.wizard import Checks
from advisor.wizard.saved import state_path
from tests.render.example_advice import CPU
from tests.wizard.scripted import FACTS, ScriptedUi, ask_answers, known

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


def asked(*replies: str) -> tuple[AnswerSet, ScriptedUi]:
    """The answers after the task and the model were asked for."""
    ui = ScriptedUi("Write code", *replies)
    answers = ask_answers(
        FACTS,
        hardware=CPU,
        earlier=None,
        ui=ui,
        checks=Checks(models=meant),
        relevant=lambda fact, *_: fact == "model",
    )
    state_path().unlink()  # fmt: skip
    assert ui.replies == []
    return answers, ui


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
    ],
)
def test_a_name_is_read_kept_or_asked_for_again(replies, expected, words):
    """Whatever is typed ends in a model, or in none."""
    answers, ui = asked(*replies)
    assert known(answers) == {"task": "code", **expected}
    assert any(words in text for text in (*ui.said, *ui.asked))


@pytest.mark.parametrize(("typed", "words"), [("qw", "Which model is meant"), ("qwn", "Did you")])
def test_a_name_of_several_is_chosen_from_a_list(typed, words):
    """The list shows what each is; a misspelt name is called unknown."""
    answers, ui = asked(typed, "Qwen/Qwen3-8B")
    assert answers.value("model") == "Qwen/Qwen3-8B"
    assert words in ui.asked[-1]
    assert ui.helps[-1][0] == "8.19B parameters"
