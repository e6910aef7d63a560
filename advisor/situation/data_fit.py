"""Data that do not suit the task: seen before anything is advised, with a row that shows it.

A model trained on a ticket's category answers a customer with "Billing". What a task needs of its
data is written down here once, for the wizard's question and for the warning where nobody is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from advisor.ground.terminal import one_line
from advisor.ground.types import DataProfile

# Tasks whose model writes to people: a category is no answer there.
REPLIES = ("customer_service", "qa", "domain_expertise", "chat_assistant", "generation", "code")
FEW_ROWS = 8  # on which nothing is judged
LEAST_SHARE = 0.05  # of the answers have to be what the task is about
LABEL_CHARS = 60  # a category is shorter on average
LABEL_SHARE = 0.5  # of the answers at most are different where they are categories
SHOWN_CHARS = 90


@dataclass(frozen=True, kw_only=True, slots=True)
class Misfit:
    """Why data do not suit a task."""

    what: str  # "these rows hold a text and a category, and no reply"
    needs: str  # "answers to learn from"
    otherwise: str = ""  # what comes of it: "the model would answer with a category"
    row: str  # one row, shortened
    suits: tuple[str, ...] = ()  # tasks that these data do suit
    blocks: bool = True  # no plan is made without a word of the person

    @property
    def text(self) -> str:
        """The sentence of a warning."""
        comes_of_it = f": {self.otherwise}" if self.otherwise else ""
        return f"{self.what} (for example {self.row}); the task needs {self.needs}{comes_of_it}"


def wanted_columns(task: object) -> str | None:
    """What a task looks for among the columns of a table: "reply" or "label"; None for no task."""
    if task is None:
        return None
    return "label" if task == "classification" else "reply"


def misfit(task: object, found: DataProfile) -> Misfit | None:
    """Why the data do not suit the task, or None."""
    judge = JUDGES.get(str(task)) or (_replies if task in REPLIES else None)
    return None if judge is None else judge(found)


def suited_task(found: DataProfile) -> str:
    """The task that the rows show by themselves; `other`, with which the data decide alone, where
    they show none.
    """
    if found.format == "classification":
        return "classification"
    if found.kind == "prompts_with_verifier":
        return "reasoning"
    looks = _looks(found)
    count = looks["looked_at"]
    signs = {"calls": "tool_use", "code": "code", "layout": "structured_output"}
    shown = (task for sign, task in signs.items() if looks.get(sign, 0) > count / 2)
    return next(shown, "other") if count >= FEW_ROWS else "other"


def _replies(found: DataProfile) -> Misfit | None:
    if found.format != "classification":
        return None
    return Misfit(
        what="these rows hold a text and a category, and no reply",
        needs="replies to learn from",
        otherwise="the model would answer with a category",
        row=row_words(found),
        suits=("classification",),
    )


def _classification(found: DataProfile) -> Misfit | None:
    if found.format == "classification" or found.kind in (
        "prompts_with_verifier",
        "unpaired_feedback",
    ):
        return None
    needs, looks = "a text and its category in each row", _looks(found)
    if found.kind == "raw_text":
        return Misfit(
            what="these are documents without a category",
            needs=needs,
            row=row_words(found),
            suits=("qa", "domain_expertise", "generation"),
        )
    if found.kind == "preference":
        return Misfit(
            what="these are pairs of a better and a worse answer, without a category",
            needs=needs,
            row=row_words(found),
            suits=("chat_assistant", "customer_service"),
        )
    if looks["looked_at"] < FEW_ROWS or (
        looks["characters"] <= LABEL_CHARS
        and looks["different"] <= max(2, LABEL_SHARE * looks["looked_at"])
    ):
        return None
    return Misfit(
        what="the answers in these rows are no categories: nearly every one is different",
        needs=needs,
        row=row_words(found),
        suits=("customer_service", "qa", "generation"),
    )


def _tool_use(found: DataProfile) -> Misfit | None:
    needs = "rows in which the model calls a function"
    if found.kind == "raw_text":
        return Misfit(
            what="these are documents: no function is called in them",
            needs=needs,
            row=row_words(found),
            suits=("qa", "domain_expertise", "generation"),
        )
    if found.kind == "prompts_with_verifier" or not _lacks("calls", found):
        return None
    return Misfit(
        what="no row calls a function",
        needs=needs,
        row=row_words(found),
        suits=_sorts_or(found, "customer_service", "qa", "structured_output"),
    )


def _code(found: DataProfile) -> Misfit | None:
    if found.format == "classification":
        return _replies(found)
    if found.kind == "prompts_with_verifier" or not _lacks("code", found):
        return None
    return Misfit(
        what="hardly a row holds code",
        needs="programs, queries or scripts to learn from",
        row=row_words(found),
        suits=("qa", "generation", "domain_expertise"),
        blocks=False,  # there are more languages than signs to know them by
    )


def _structured_output(found: DataProfile) -> Misfit | None:
    if found.format == "classification" or found.kind == "prompts_with_verifier":
        return None
    if found.kind == "raw_text":
        return Misfit(
            what="these are documents, without a filled-in form",
            needs="a text and what is to be filled in from it, in each row",
            row=row_words(found),
            suits=("qa", "domain_expertise", "generation"),
        )
    if not _lacks("layout", found):
        return None
    return Misfit(
        what="hardly an answer has a layout that a program could read",
        needs="answers in JSON or another fixed layout",
        row=row_words(found),
        suits=("generation", "qa"),
        blocks=False,
    )


def _sorts_or(found: DataProfile, *tasks: str) -> tuple[str, ...]:
    """The tasks, or for texts with a category the one that they are for."""
    return ("classification",) if found.format == "classification" else tasks


JUDGES: dict[str, Callable[[DataProfile], Misfit | None]] = {
    "classification": _classification,
    "tool_use": _tool_use,
    "code": _code,
    "structured_output": _structured_output,
}


def _looks(found: DataProfile) -> dict[str, Any]:
    """Counts of advisor/data/checks/answers.py."""
    looks: dict[str, Any] = found.measures.get("answers_seen") or {"looked_at": 0}
    return looks


def _lacks(kind: str, found: DataProfile) -> bool:
    """Whether enough answers were looked at, and hardly one is of a kind."""
    looks = _looks(found)
    count = int(looks["looked_at"])
    return count >= FEW_ROWS and int(looks[kind]) < LEAST_SHARE * count


def row_words(found: DataProfile) -> str:
    """One row of the data as request -> answer, shortened."""
    return (
        " -> ".join(f'"{one_line(part, SHOWN_CHARS)}"' for part in example_parts(found))
        or "an empty row"
    )


def example_parts(found: DataProfile) -> tuple[str, ...]:
    """What stands in the sample row: request and answer, text and category, a text."""
    sample = found.sample or {}
    if sample.get("label") is not None:
        return str(sample.get("text", "")), str(sample["label"])
    turns = sample.get("messages") or []
    asked = next((turn["content"] for turn in reversed(turns) if turn["role"] == "user"), "")
    if sample.get("chosen"):
        return asked, sample["chosen"][-1]["content"], sample["rejected"][-1]["content"]
    if turns:
        last = turns[-1]
        said = last["content"] or str(last.get("tool_calls") or last.get("function_call") or "")
        answer = said if last["role"] == "assistant" else str(sample.get("answer", ""))
        return (asked, answer) if answer else (asked,)
    return (str(sample["text"]),) if "text" in sample else ()
