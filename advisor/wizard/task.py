"""The first question: what the model should do. Nobody has to know; examples lead to a task."""

from __future__ import annotations

from advisor.wizard.prompts import Option, Ui
from advisor.wizard.walk import BACK, DONT_KNOW, Question, Reply

OTHER = "other"  # the task where none is stated: it decides nothing


def ask_task(question: Question, ui: Ui) -> Reply:
    """The task, by its name or by an example of what the model should do better."""
    fact = question.fact
    options = [
        *(
            Option(value=name, label=value.label, help=value.help)
            for name, value in fact.values.items()
        ),
        Option(value=DONT_KNOW, label="I don't know", help="show me examples instead"),
        *(
            [Option(value=BACK, label="Back", help="to the question before")]
            if question.can_go_back
            else []
        ),
    ]
    examples = [
        *(
            Option(value=name, label=value.such_as)
            for name, value in fact.values.items()
            if value.such_as
        ),
        Option(value=OTHER, label="I don't know", help="your data, money and machine decide alone"),
        Option(value=BACK, label="Back", help="to the list before"),
    ]
    while True:
        chosen = ui.choose(f"{question.number}. {fact.ask}", options, current=question.current)
        if chosen is not DONT_KNOW:
            return chosen
        chosen = ui.choose(
            "What do you want it to do better? Take the line that is nearest to it.", examples
        )
        if chosen is not BACK:
            return chosen
