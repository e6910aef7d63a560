"""Ways to read a file by the names of its columns and the shape of their values, or as a mapping
states it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace

from advisor.data.recognition import roles
from advisor.data.recognition.columns import Column
from advisor.ground.errors import InputError

MAX_LABELLED_COLUMNS = 4  # with more, a column of few values is taken for a remark about the text
LONG_TEXT_CHARS = (
    1500  # texts this long beside an unnamed column of few values are documents with metadata
)

KINDS = {
    "messages": "paired",
    "sharegpt": "paired",
    "tool_calls": "paired",
    "alpaca": "paired",
    "prompt_completion": "paired",
    "question_answer": "paired",
    "summary": "paired",
    "transcript": "paired",
    "classification": "paired",
    "text": "raw_text",
    "preference": "preference",
    "unpaired_feedback": "unpaired_feedback",
    "prompts_with_verifier": "prompts_with_verifier",
    "requests": "prompts_with_verifier",  # without an answer: only if --map says so
}


def map_flag(mapping: Mapping[str, str]) -> str:
    """The option that states a mapping, ready for a shell: "--map question=Q 'answer=My A'"."""
    import shlex

    # Letters of other scripts need no quotes, and read better without.
    pairs = [f"{role}={column}" for role, column in mapping.items()]
    plain = [re.fullmatch(r"[\w@%+=:,./-]+", pair) is not None for pair in pairs]
    return "--map " + " ".join(
        pair if bare else shlex.quote(pair) for pair, bare in zip(pairs, plain, strict=True)
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """One way to read a file."""

    format: str
    mapping: Mapping[str, str]
    why: str
    certain: bool = True
    likely: bool = False  # taken, but the values decided rather than the names
    guessed: bool = False  # by the words in names (words.py)

    @property
    def kind(self) -> str:
        return KINDS[self.format]

    @property
    def flag(self) -> str:
        """The option that chooses it: '--map question=Frage answer=Antwort'."""
        return map_flag(self.mapping)


def by_name(columns: Mapping[str, Column]) -> list[Candidate]:
    """Ways to read a file whose columns have known names: one entry where it is clear, several
    where it is not.
    """
    names: dict[str, str] = {}
    for column in columns:
        names.setdefault(roles.normal(column), column)

    def find(wanted: tuple[str, ...], *shapes: str) -> str | None:
        return next(
            (
                names[name]
                for name in wanted
                if name in names and (not shapes or columns[names[name]].shape in shapes)
            ),
            None,
        )

    def optional(**wanted: str | None) -> dict[str, str]:
        return {role: column for role, column in wanted.items() if column is not None}

    system = find(roles.SYSTEMS, "text")
    tools = find(roles.TOOLS, "list", "text", "object")
    question = find(roles.QUESTIONS, "text", "turns")
    ranked = _ranked(columns, names)
    context = find(roles.CONTEXTS, "text")
    chosen, rejected = find(roles.CHOSEN, "text", "turns"), find(roles.REJECTED, "text", "turns")
    if (
        chosen
        and roles.normal(chosen) == "good"
        and not (rejected and roles.normal(rejected) == "bad")
    ):
        chosen = None  # alone it is a verdict
    conversation = find(roles.CONVERSATIONS, "turns") or _only_conversation(columns)
    if ranked and not (chosen and rejected) and (conversation or question):
        ranking = f"several answers in every row of `{ranked}`, the best one first"
        if conversation:
            return [
                Candidate(
                    format="preference",
                    mapping={"messages": conversation, "ranked": ranked, **optional(system=system)},
                    why=ranking,
                    certain=False,
                )
            ]
        prompt = optional(
            question=question, context=context if context not in (question, ranked) else None
        )
        right = f"several answers in every row of `{ranked}`, of which the first is learned"
        first = Candidate(
            format="preference",
            mapping={**prompt, "ranked": ranked, **optional(system=system)},
            why=ranking,
            certain=False,
        )
        return [
            first,
            Candidate(
                format="question_answer",
                mapping={**prompt, "answer": ranked, **optional(system=system)},
                why=right,
                certain=False,
            ),
        ]
    if chosen and rejected:
        prompt = (
            optional(messages=conversation)
            if conversation and not question
            else optional(question=question, context=context if context != question else None)
        )
        why = f"a better (`{chosen}`) and a worse (`{rejected}`) answer in every row"
        return [
            Candidate(
                format="preference",
                mapping={
                    **prompt,
                    "chosen": chosen,
                    "rejected": rejected,
                    **optional(system=system, tools=tools),
                },
                why=why,
            )
        ]

    good = next(
        (
            names[name]
            for name in roles.GOOD
            if name in names and _is_yes_no(columns[names[name]], name)
        ),
        None,
    )
    truth = find(roles.TRUTHS)
    if conversation:
        facts = columns[conversation]
        if good:
            return [
                Candidate(
                    format="unpaired_feedback",
                    mapping={"messages": conversation, "good": good, **optional(system=system)},
                    why=f"conversations with a verdict in `{good}`",
                )
            ]
        ends_open = facts.open_ended > 0.5 * facts.filled
        checkable = truth or find(("answer", "solution"), "text", "number")
        if ends_open and checkable:
            return [
                Candidate(
                    format="prompts_with_verifier",
                    mapping={"messages": conversation, "ground_truth": checkable},
                    why=(
                        "conversations that end with a question, and the right answer in"
                        f" `{checkable}`"
                    ),
                )
            ]
        spelling = "from / value" if facts.sharegpt > 0.5 * facts.filled else "role / content"
        name = (
            "tool_calls"
            if tools or facts.with_calls
            else "sharegpt"
            if spelling == "from / value"
            else "messages"
        )
        return [
            Candidate(
                format=name,
                mapping={"messages": conversation, **optional(system=system, tools=tools)},
                why=f"a list of {spelling} turns in `{conversation}`",
            )
        ]

    extras = optional(system=system, history=find(("history",), "list"), tools=tools)
    return _pairs(columns, names, good=good, truth=truth, extras=extras) or _texts(
        columns, names, extras
    )


def _ranked(columns: Mapping[str, Column], names: Mapping[str, str]) -> str | None:
    """A column that holds two answers and more in every row, as older preference files do: the
    first one is the better.
    """
    for name in (*roles.ANSWERS, "ranking", "responses", "candidates"):
        column = columns[names[name]] if name in names else None
        if (
            column is not None
            and column.shape == "texts"
            and column.several >= 0.95 * column.filled > 0
        ):
            return names[name]
    return None


def _only_conversation(columns: Mapping[str, Column]) -> str | None:
    """The single column of turns, whatever its name, unless it is called a prompt or an answer."""
    turns = [
        name
        for name, column in columns.items()
        if column.shape == "turns"
        and roles.normal(name)
        not in (*roles.QUESTIONS, *roles.ANSWERS, *roles.CHOSEN, *roles.REJECTED)
    ]
    return turns[0] if len(turns) == 1 else None


def _is_yes_no(column: Column, name: str) -> bool:
    if column.shape == "bool":
        return True
    # A class column called `label` may hold 0 and 1 too; the caller has an answer column beside it.
    return (
        column.filled > 0
        and column.yes_no == column.filled
        and (name != "label" or len(column.values) <= 2)
    )


def _pairs(
    columns: Mapping[str, Column],
    names: Mapping[str, str],
    *,
    good: str | None,
    truth: str | None,
    extras: Mapping[str, str],
) -> list[Candidate]:
    usable = ("text", "turns", "number", "object", "texts", "list", "bool")
    questions = [
        names[name]
        for name in roles.QUESTIONS
        if name in names and columns[names[name]].shape in ("text", "turns")
    ]
    answers = [
        names[name]
        for name in roles.ANSWERS
        if name in names and columns[names[name]].shape in usable and names[name] not in questions
    ]
    pairs = [
        (names[left], names[right])
        for left, right in roles.PAIRS
        if left in names and right in names and names[left] in questions and names[right] in answers
    ]
    found: list[Candidate] = []
    if pairs:
        question, answer = pairs[0]
        asked, said = columns[question], columns[answer]
        if asked.shape == said.shape == "text" and not asked.characters:  # OpenAI's old guide
            why = f"plain text in `{answer}`; every `{question}` is empty"
            return [Candidate(format="text", mapping={"text": answer}, why=why)]
        apart = [pair for pair in pairs[1:] if question not in pair and answer not in pair]
        # instruction + input + output is one format; `input` + `output` in it is no second one.
        rivals = [(question, answer), *(pair for pair in apart)]
        rivals += [
            (question, other) for other in answers if other != answer and (question, other) in pairs
        ]
        if {roles.normal(question), roles.normal(answer)} == {"problem", "solution"}:
            rivals = rivals[
                :1
            ]  # `answer` beside them is the result of the solution, not a second answer
        found = [_pair(columns, names, left, right, extras) for left, right in rivals]
    elif questions and answers:
        main = (
            questions[0]
            if len(questions) == 1 or roles.normal(questions[-1]) in roles.CONTEXTS
            else None
        )
        lefts = [main] if main else questions[:3]
        found = [
            _pair(columns, names, left, right, extras) for left in lefts for right in answers[:3]
        ]
    if len(found) == 1 and good and good not in found[0].mapping.values():
        why = f"answers in `{found[0].mapping['answer']}` with a verdict in `{good}`"
        return [
            Candidate(
                format="unpaired_feedback", mapping={**found[0].mapping, "good": good}, why=why
            )
        ]
    tested = truth is not None and "test" in roles.normal(
        truth
    )  # code beside tests: the tests check it, whether or not a solution stands there
    solved = [
        answer
        for answer in answers
        if roles.normal(answer) not in ("code", "solution", "canonical_solution")
    ]
    if not questions and tested:
        questions = [
            names[name]
            for name in ("text", "description")
            if name in names and columns[names[name]].shape == "text"
        ]
    if questions and truth and (not answers or (tested and not solved)):
        prompt = questions[0]
        return [
            Candidate(
                format="prompts_with_verifier",
                mapping={"question": prompt, "ground_truth": truth, **_system(extras)},
                why=f"requests in `{prompt}` with the right answer in `{truth}`",
            )
        ]
    if len(found) == 1:
        problem, result = found[0].mapping["question"], found[0].mapping["answer"]
        pair, facts = (roles.normal(problem), roles.normal(result)), columns[result]
        short = (
            facts.mean_characters <= 100
            if pair == ("prompt", "solution")
            else facts.filled >= 3
            and facts.checkable >= 0.95 * facts.filled
            and facts.mean_characters <= 24
        )
        if short and pair in (("prompt", "solution"), ("prompt", "answer"), ("problem", "answer")):
            mapping = {"question": problem, "ground_truth": result, **_system(extras)}
            why = f"requests in `{problem}` with a short right answer in `{result}`"
            return [
                Candidate(format="prompts_with_verifier", mapping=mapping, why=why, likely=True),
                replace(found[0], certain=False),
            ]
        beside = names.get("answer", truth)
        if (
            beside
            and beside not in found[0].mapping.values()
            and (pair == ("problem", "solution") or beside == truth)
        ):
            # The worked solution teaches, the result beside it can be checked: the rows serve both.
            found = [replace(found[0], mapping={**found[0].mapping, "ground_truth": beside})]
    if not found:
        text = next(
            (
                names[name]
                for name in roles.SUMMARISED
                if name in names and columns[names[name]].shape == "text"
            ),
            None,
        )
        summary = next(
            (
                names[name]
                for name in roles.SUMMARIES
                if name in names and columns[names[name]].shape == "text"
            ),
            None,
        )
        if text and summary:
            return [
                Candidate(
                    format="summary",
                    mapping={"question": text, "answer": summary},
                    why=f"a text in `{text}` and its summary in `{summary}`",
                    certain=False,
                )
            ]
    return found


def _system(extras: Mapping[str, str]) -> dict[str, str]:
    return {"system": extras["system"]} if "system" in extras else {}


def _pair(
    columns: Mapping[str, Column],
    names: Mapping[str, str],
    question: str,
    answer: str,
    extras: Mapping[str, str],
) -> Candidate:
    mapping = {"question": question}
    context = next(
        (
            names[name]
            for name in roles.CONTEXTS
            if name in names
            and names[name] not in (question, answer)
            and columns[names[name]].shape in ("text", "null")
        ),
        None,
    )
    if context:
        mapping["context"] = context
    mapping["answer"] = answer
    known = (roles.normal(question), roles.normal(answer)) in roles.PAIRS
    return Candidate(
        format=pair_format(mapping, tools="tools" in extras),
        mapping={**mapping, **extras},
        why=f"a request in `{question}` and its answer in `{answer}`",
        certain=known,
    )


def pair_format(mapping: Mapping[str, str], *, tools: bool = False) -> str:
    """What a pair of columns is commonly called."""
    pair = (roles.normal(mapping["question"]), roles.normal(mapping["answer"]))
    if tools:
        return "tool_calls"
    return (
        "alpaca"
        if pair == ("instruction", "output")
        else "prompt_completion"
        if pair == ("prompt", "completion")
        else "question_answer"
    )


def _texts(
    columns: Mapping[str, Column], names: Mapping[str, str], extras: Mapping[str, str]
) -> list[Candidate]:
    for first, second in roles.COMPARED:
        if first in names and second in names:
            labels = [
                names[name]
                for name in roles.LABELS
                if name in names and columns[names[name]].is_label(named=True)
            ]
            if labels:
                why = (
                    f"two texts in `{names[first]}` and `{names[second]}`, and their class in"
                    f" `{labels[0]}`"
                )
                return [
                    Candidate(
                        format="classification",
                        mapping={
                            "text": names[first],
                            "context": names[second],
                            "label": labels[0],
                        },
                        why=why,
                    )
                ]
    spoken = [
        names[name]
        for name in roles.CONVERSATIONS
        if name in names and columns[names[name]].shape == "text"
    ]
    if spoken and columns[spoken[0]].transcripts >= 0.95 * columns[spoken[0]].filled > 0:
        why = f"a written dialogue in `{spoken[0]}` (speakers named at the start of a turn)"
        return [
            Candidate(
                format="transcript", mapping={"transcript": spoken[0], **_system(extras)}, why=why
            )
        ]
    text = next(
        (
            names[name]
            for name in (*roles.TEXTS, "question", "query", "prompt")
            if name in names
            and columns[names[name]].shape == "text"
            and not columns[names[name]].holds_addresses
        ),
        None,
    )
    if text is None:
        return []
    is_text = roles.normal(text) in roles.TEXTS
    labels = [
        names[name]
        for name in roles.LABELS
        if name in names and names[name] != text and columns[names[name]].is_label(named=True)
    ]
    if labels:
        words = [
            label
            for label in labels
            if roles.normal(label) in ("label_text", "label_name")
            and columns[label].shape == "text"
        ]
        named = [label for label in labels if roles.normal(label) in ("label", "labels", "class")]
        first = (words or named or labels)[0]
        # What is called a label is the label; of several other columns of classes none is taken
        # unasked.
        certain = len(labels) == 1 or first in (*words, *named)
        return [
            _labelled(columns, text, first, certain=certain),
            *(_labelled(columns, text, label) for label in labels if label != first),
        ]
    if not is_text:
        return []
    by_value = _few_valued(columns, text)
    plain = Candidate(
        format="text", mapping={"text": text}, why=f"a text in `{text}`", certain=len(columns) == 1
    )
    if by_value and (
        len(columns) > MAX_LABELLED_COLUMNS or columns[text].mean_characters > LONG_TEXT_CHARS
    ):
        other = _labelled(columns, text, by_value[0]).flag
        return [
            replace(
                plain,
                certain=False,
                why=f"a text in `{text}` with columns about it (if it has classes: {other})",
            )
        ]
    if not by_value:
        if columns[text].transcripts >= 0.95 * columns[text].filled > 0:
            return [
                Candidate(
                    format="transcript",
                    mapping={"transcript": text},
                    why=f"a written dialogue in `{text}` (speakers named at the start of a turn)",
                    certain=False,
                )
            ]
        return [plain]
    return [_labelled(columns, text, label) for label in by_value]


def _labelled(
    columns: Mapping[str, Column], text: str, label: str, *, certain: bool = False
) -> Candidate:
    # Only some rows were looked at: how many classes there are is counted over all.
    why = f"a text in `{text}` and its class in `{label}`"
    return Candidate(
        format="classification", mapping={"text": text, "label": label}, why=why, certain=certain
    )


def _few_valued(
    columns: Mapping[str, Column], text: str, trusted: tuple[str, ...] = ()
) -> list[str]:
    def few(name: str) -> bool:
        return (
            name != text
            and roles.normal(name) not in roles.METADATA
            and columns[name].is_label(named=roles.normal(name) in trusted)
            and not columns[name].holds_dates
        )

    return [name for name in columns if few(name)]


def by_shape(columns: Mapping[str, Column]) -> list[Candidate]:
    """Ways to read a file whose columns have unknown names: a written dialogue, or a text beside a
    column of few distinct values.
    """
    for name, column in columns.items():
        if column.transcripts >= 0.95 * column.filled > 0:
            why = f"a written dialogue in `{name}` (speakers named at the start of a turn)"
            mapping = {"transcript": name}
            return [Candidate(format="transcript", mapping=mapping, why=why, certain=False)]
    texts = [
        name
        for name, column in columns.items()
        if column.shape == "text"
        and column.mean_characters >= 15
        and not column.is_label(named=False)
        and len(column.values) > 1
        and roles.normal(name) not in roles.METADATA
    ]
    if len(texts) != 1:
        return []
    return [
        _labelled(columns, texts[0], label)
        for label in _few_valued(columns, texts[0], trusted=roles.LABELS)
    ]


def by_mapping(stated: Mapping[str, str], columns: Mapping[str, Column], shown: str) -> Candidate:
    """The format that the stated roles make. Raises InputError where they make none."""
    has = set(stated)
    prompt = bool(has & {"question", "messages"})
    if "chosen" in has or "rejected" in has:
        missing = {"chosen", "rejected"} - has
        if missing:
            raise InputError(
                f"--map names no column for '{missing.pop()}'",
                "a preference needs chosen and rejected",
                "--map question=COL chosen=COL rejected=COL",
                where=shown,
            )
        name = "preference"
    elif "good" in has and ("messages" in has or {"question", "answer"} <= has):
        name = "unpaired_feedback"
    elif "ranked" in has and prompt:
        name = "preference"
    elif "ground_truth" in has and prompt and not {"question", "answer"} <= has:
        name = "prompts_with_verifier"
    elif "messages" in has:
        facts = columns[stated["messages"]]
        name = (
            "tool_calls"
            if "tools" in has or facts.with_calls
            else "sharegpt"
            if facts.sharegpt > 0.5 * facts.filled
            else "messages"
        )
    elif {"question", "answer"} <= has:
        name = pair_format(stated, tools="tools" in has)
    elif {"text", "label"} <= has or {"question", "label"} == has:
        name = "classification"
        if "question" in has:
            stated = {"text": stated["question"], "label": stated["label"]}
    elif "transcript" in has:
        name = "transcript"
    elif has == {"text"}:
        name = "text"
    elif "question" in has and has <= {"question", "system", "context", "history"}:
        name = "requests"
    else:
        raise InputError(
            f"--map {' '.join(f'{role}={column}' for role, column in stated.items())}"
            " makes no known format",
            "question + answer; messages; text; text + label; chosen + rejected; question + answer"
            " + good; question + ground_truth; question",
            "--map question=COL answer=COL",
            where=shown,
        )
    return Candidate(format=name, mapping=dict(stated), why="as stated with --map")
