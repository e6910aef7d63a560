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


def test_a_known_name_is_written_out():
    """A name in another spelling becomes the hub's, and what it is read as is said."""
    answers, ui = asked("Qwen3-8B")
    assert answers.value("model") == "Qwen/Qwen3-8B"
    assert any("read as Qwen/Qwen3-8B" in text for text in ui.said)


@pytest.mark.parametrize(("typed", "words"), [("qw", "Which model is meant"), ("qwn", "Did you")])
def test_a_name_of_several_is_chosen_from_a_list(typed, words):
    """The list shows what each is; a misspelt name is called unknown."""
    answers, ui = asked(typed, "Qwen/Qwen3-8B")
    assert answers.value("model") == "Qwen/Qwen3-8B"
    assert words in ui.asked[-1]
    assert ui.helps[-1][0] == "8.19B parameters"


def test_a_name_can_be_typed_again_or_left_to_a_suggestion():
    """Neither is a dead end."""
    answers, _ = asked("xyz", "Type another name", "Qwen3-8B")
    assert answers.value("model") == "Qwen/Qwen3-8B"
    answers, _ = asked("xyz", "I don't know")
    assert answers.value("model") is None


def test_a_model_that_nothing_knows_is_kept_with_its_size():
    """Its size is asked for, unless its name says it; a later name takes the size away."""
    answers, _ = asked("our model", "Keep our model", "8B")
    assert known(answers) == {"task": "code", "model": "our model", "model_params_b": 8}
    answers, ui = asked("our model 13B", "Keep our model 13B")
    assert known(answers) == {"task": "code", "model": "our model 13B"}
    assert not any("How many billion" in text for text in ui.asked)


def test_why_a_hub_id_was_not_found_is_said():
    """An id of the hub can be kept without a network."""
    answers, ui = asked("acme/own", "Keep acme/own", "")
    assert answers.value("model") == "acme/own"
    assert "the hub could not be reached" in ui.asked[2]


def test_a_folder_that_is_no_model_is_corrected_at_once():
    """What is missing is said, and the question is put again."""
    answers, ui = asked("./empty", "Qwen3-8B")
    assert answers.value("model") == "Qwen/Qwen3-8B"
    assert any("no config.json" in text for text in ui.said)
