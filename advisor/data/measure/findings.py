"""What is conspicuous about the content of data: kept row by row in a notebook of flat size, judged
at the end.
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

from advisor.data.chat_text import said
from advisor.data.checks.labels import class_findings
from advisor.data.checks.languages import is_english, script_of
from advisor.data.checks.placeholders import Unfilled
from advisor.data.checks.private import KINDS, NUMBERS, Suspects
from advisor.data.checks.repeats import Sample, normalise
from advisor.data.checks.tally import SHOWN_ROWS, Tally
from advisor.data.examples import rows_words
from advisor.data.same_rows import Example
from advisor.data.template_messages import called_functions
from advisor.data.thoughts import MARK, answers_of, has_reasoning, holds_thoughts
from advisor.ground.types import Finding

LANGUAGE_ROWS = 200  # whose language is looked at
ANSWERS_COUNTED = 100_000  # rows whose answers are compared: enough to see a constant one
# different rows kept to find repeated ones: about 250 MB of hashes, so that memory stays flat
COMPARED_ROWS = 1_500_000
KEPT_CLASSES = 1000
# of the answers that must be checkable before the data counts as problems with a right answer
CHECKABLE_SHARE = 0.95
# OpenAI's guide sees gains from 50 to 100 examples; runs on 10 and 25 rows are documented failures
FEW_ROWS = 50
LONG_TOKENS = 8192
# Marks that chat templates and tokenizers write themselves: in the text they end a turn early or
# open a false one.
TEMPLATE_MARKS = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|start_header_id|>",
    "[INST]",
    "[/INST]",
    "<s>",
    "</s>",
    "<start_of_turn>",
    "<end_of_turn>",
)
MOJIBAKE = ("Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨", "Ã±", "â€™", "â€œ", "â€“", "Â ")


@dataclass(slots=True)
class Notebook:
    """What was seen so far. Sets of hashes, since a million rows must not cost a million texts."""

    kind: str
    format: str
    # look for rows that are nearly the same and for personal numbers, too: about 10 microseconds a
    # row
    thorough: bool = False
    rows: int = 0
    seen: set[int] = field(default_factory=set)
    typed: dict[int, int] = field(
        default_factory=dict
    )  # hash of a row normalised -> hash of the first such row
    asked: set[int] = field(default_factory=set)
    compared: int = 0  # rows that were compared with all before them
    answers: Counter[int] = field(default_factory=Counter)
    shortest_answer: dict[int, str] = field(default_factory=dict)
    classes: Counter[str] = field(default_factory=Counter)
    scripts: Counter[str] = field(default_factory=Counter)
    english: Counter[bool] = field(default_factory=Counter)  # texts in Latin letters, long enough
    suspects: Suspects = field(default_factory=Suspects)
    sample: Sample = field(default_factory=Sample)
    duplicates: Tally = field(default_factory=Tally)
    nearly: Tally = field(default_factory=Tally)
    conflicts: Tally = field(default_factory=Tally)
    long: Tally = field(default_factory=Tally)
    long_requests: Tally = field(default_factory=Tally)
    marked: Tally = field(default_factory=Tally)
    unfilled: Unfilled = field(default_factory=Unfilled)
    mojibake: Tally = field(default_factory=Tally)
    nul: Tally = field(default_factory=Tally)
    unordered: Tally = field(default_factory=Tally)
    longer_chosen: int = 0
    longer_rejected: int = 0
    good: int = 0
    bad: int = 0
    checkable: int = 0
    multi_turn: int = 0
    single: int = 0  # one request, one answer
    turns: Counter[int] = field(
        default_factory=Counter
    )  # assistant turns -> conversations, the rest
    with_system: int = 0
    with_tools: int = 0
    with_calls: int = 0
    with_thoughts: int = 0
    with_reasoning: int = 0  # of these, rows with thoughts beside an answer, not in it

    def add(self, example: Example, text: str, request_tokens: int, tokens: int) -> bytes:
        """Notes one example: all its text, and about how many tokens it and its request have.

        Returns the text normalised, where that was needed.
        """
        if not self.rows:
            self.suspects.numbers = self.thorough
        self.rows += 1
        row = example.row
        messages = example.messages
        answer: str | None = None
        asked: int | None = None
        if self.kind == "raw_text":
            key = hash(text)
        else:
            parts = tuple(message.content for message in messages)
            if self.kind == "preference":
                ends = (
                    tuple(map(said, example.chosen)),
                    tuple(map(said, example.rejected)),
                )
                key = hash((parts, ends))
                chosen, rejected = sum(map(len, ends[0])), sum(map(len, ends[1]))
                self.longer_chosen += chosen > rejected
                self.longer_rejected += rejected > chosen
            elif self.kind == "prompts_with_verifier":
                key, asked = hash((parts, example.answer)), hash(parts)
            else:
                key, asked, answer = hash((parts, example.good)), hash(parts[:-1]), parts[-1]
                if len(messages) > 3:  # conversations that end alike are not alike
                    answer = "\n".join(
                        turn.content for turn in messages if turn.role == "assistant"
                    )
                if messages[-1].extra:
                    key = hash((key, repr(messages[-1].extra)))
                    answer = None
                self.checkable += example.answer is not None
            if len(messages) == 2 and messages[0].role == "user":  # nearly every row there is
                self.single += 1
            else:
                self._look_at_turns(example)
        plain = normalise(text) if self.thorough else b""
        self._compare(row, key, asked, plain, example)
        if answer is not None and self.rows <= ANSWERS_COUNTED:
            digest = hash(answer)
            self.answers[digest] += 1
            if len(self.shortest_answer) < 50:
                self.shortest_answer.setdefault(digest, answer[:60])
        if example.label is not None and (
            len(self.classes) < KEPT_CLASSES or example.label in self.classes
        ):
            self.classes[example.label] += 1
        if tokens > LONG_TOKENS:
            self.long.add(row)
            if request_tokens > LONG_TOKENS:
                self.long_requests.add(row)
        script = script_of(text)
        self.scripts[script] += 1
        if (
            script == "Latin"
            and self.rows <= LANGUAGE_ROWS
            and (english := is_english(text)) is not None
        ):
            self.english[english] += 1
        self.suspects.look(text, row)
        self._look_at_text(text, row)
        self.unfilled.look(example, text)
        if example.tools:
            self.with_tools += 1
        extra = any(message.extra for message in messages)
        if extra and any(map(called_functions, messages)):
            self.with_calls += 1
        # An answer's content is in the text; thoughts beside it are rare.
        if MARK in text or extra:
            answers = answers_of(example)
            self.with_thoughts += any(map(holds_thoughts, answers))
            self.with_reasoning += extra and any(map(has_reasoning, answers))
        if example.good is not None:
            self.good += example.good
            self.bad += not example.good
        return plain

    def _compare(
        self, row: int, key: int, asked: int | None, plain: bytes, example: Example
    ) -> None:
        """Tells rows that repeat an earlier one, exactly or typed differently."""
        if self.thorough:
            typed = hash((plain, example.good, example.answer))
            first = self.typed.get(typed)
            if first is not None:
                (self.duplicates if first == key else self.nearly).add(row)
                return
            if len(self.typed) >= COMPARED_ROWS:
                return
            self.typed[typed] = key
            self.sample.offer(row, plain)
        else:
            if key in self.seen:
                self.duplicates.add(row)
                return
            if len(self.seen) >= COMPARED_ROWS:
                return
            self.seen.add(key)
        self.compared = self.rows
        if asked is not None:
            if asked in self.asked and self.kind == "paired":
                self.conflicts.add(row)
            self.asked.add(asked)

    def _look_at_text(self, text: str, row: int) -> None:
        if "\0" in text:
            self.nul.add(row)
        if ("<" in text or "[" in text) and any(mark in text for mark in TEMPLATE_MARKS):
            self.marked.add(row)
        if (
            not text.isascii()
            and ("Ã" in text or "â€" in text or "Â" in text)
            and any(mark in text for mark in MOJIBAKE)
        ):
            self.mojibake.add(row)

    def _look_at_turns(self, example: Example) -> None:
        messages = example.messages
        if len(messages) <= 2 and (not messages or messages[0].role == "user"):
            self.turns[1] += 1
            return
        spoken = [message.role for message in messages if message.role != "system"]
        answers = spoken.count("assistant") + bool(example.chosen)
        self.turns[max(1, answers)] += 1
        self.multi_turn += answers > 1
        self.with_system += messages[0].role == "system"
        if "tool" in spoken or any(message.extra for message in messages):
            return
        wrong = bool(spoken) and (
            spoken[0] != "user" or any(left == right for left, right in itertools.pairwise(spoken))
        )
        if wrong or any(message.role == "system" for message in messages[1:]):
            self.unordered.add(example.row)


def _rows(count: int) -> str:
    return f"{count:,} row{'' if count == 1 else 's'}"


def look_back(notebook: Notebook, *, whole: bool) -> list[Finding]:
    """The findings of everything noted.

    Args:
        whole: Every row was noted. The beginning of a file may be sorted (all of one class first),
            so what it lacks blocks nothing.
    """
    findings: list[Finding] = []
    rows = notebook.rows
    if not rows:
        return findings
    if notebook.duplicates.count:
        share = notebook.duplicates.count / rows
        text = f"{_rows(notebook.duplicates.count)} repeating an earlier row word for word"
        findings.append(
            notebook.duplicates.finding(
                "duplicate-rows", "warning" if share > 0.01 else "note", text
            )
        )
    findings.extend(_nearly_the_same(notebook))
    if notebook.compared < rows and len(notebook.typed) + len(notebook.seen) >= COMPARED_ROWS:
        text = (
            f"rows were compared with the first {COMPARED_ROWS:,} different ones only, so that"
            " memory stays flat"
        )
        findings.append(
            Finding(id="not-all-rows-compared", severity="note", text=text, count=COMPARED_ROWS)
        )
    if notebook.conflicts.count:
        findings.append(
            notebook.conflicts.finding(
                "same-request-other-answer",
                "note",
                f"{_rows(notebook.conflicts.count)} asking what an earlier row asks, with another"
                " answer",
            )
        )
    if notebook.nul.count:
        findings.append(
            notebook.nul.finding(
                "nul-character", "warning", f"{_rows(notebook.nul.count)} with a NUL character"
            )
        )
    if notebook.marked.count:
        what = (
            "marks of a chat template or tokenizer in the text, such as <|im_end|> or </s>: the"
            " trainer adds its own"
        )
        findings.append(
            notebook.marked.finding(
                "template-marks-in-text", "warning", f"{_rows(notebook.marked.count)} with {what}"
            )
        )
    findings.extend(notebook.unfilled.findings(rows, documents=notebook.kind == "raw_text"))
    if notebook.mojibake.count:
        findings.append(
            notebook.mojibake.finding(
                "mojibake",
                "warning",
                f"{_rows(notebook.mojibake.count)} with text wrongly decoded (Ã© for é): convert"
                " the file from its real encoding",
            )
        )
    if notebook.unordered.count:
        text = (
            f"{notebook.unordered.count:,} conversations do not alternate between user and"
            " assistant; some chat templates refuse them"
        )
        findings.append(notebook.unordered.finding("turns-do-not-alternate", "warning", text))
    if notebook.long.count and notebook.kind != "raw_text":
        findings.append(
            notebook.long.finding(
                "very-long-rows",
                "warning",
                f"{_rows(notebook.long.count)} longer than about {LONG_TOKENS:,} tokens",
            )
        )
    if notebook.long_requests.count:
        text = (
            f"{notebook.long_requests.count:,} requests alone are longer than about {LONG_TOKENS:,}"
            " tokens: cut to fit, nothing of their answers is left to learn"
        )
        findings.append(notebook.long_requests.finding("very-long-requests", "warning", text))
    findings.extend(_private(notebook.suspects))
    if rows < FEW_ROWS and notebook.kind != "raw_text":
        findings.append(
            Finding(
                id="few-rows",
                severity="warning",
                text=(
                    f"only {rows} usable row{'s' if rows > 1 else ''}; {FEW_ROWS} to 100 good ones"
                    " are where gains begin"
                ),
                count=rows,
            )
        )
    judged = [*_constant_answers(notebook), *_balance(notebook)]
    if not whole:
        judged = [
            (
                replace(
                    finding,
                    severity="warning",
                    text=f"{finding.text} (in the rows read)",
                    blocks=(),
                )
                if finding.blocks
                else finding
            )
            for finding in judged
        ]
    findings.extend(judged)
    return findings


def _nearly_the_same(notebook: Notebook) -> list[Finding]:
    findings: list[Finding] = []
    if notebook.nearly.count:
        text = (
            f"{_rows(notebook.nearly.count)} repeating an earlier row but for capitals, spaces or"
            " punctuation"
        )
        findings.append(
            notebook.nearly.finding(
                "near-duplicate-rows",
                "warning" if notebook.nearly.count > 0.01 * notebook.rows else "note",
                text,
            )
        )
    pairs = notebook.sample.alike() if notebook.thorough else []
    if pairs:
        looked = len(notebook.sample.rows)
        where = "" if looked == notebook.sample.seen else f" of a random sample of {looked:,}"
        few = ", ".join(f"row {row} is like row {other}" for row, other in pairs[:3]) + (
            ", ..." if len(pairs) > 3 else ""
        )
        findings.append(
            Finding(
                id="similar-rows",
                severity="warning" if len(pairs) > 0.05 * looked else "note",
                text=(
                    f"{_rows(len(pairs))}{where} with four fifths of the wording of an earlier row"
                    f" ({few})"
                ),
                count=len(pairs),
                rows=tuple(row for row, _ in pairs[:SHOWN_ROWS]),
            )
        )
    return findings


def _private(suspects: Suspects) -> list[Finding]:
    """Secrets are a warning each; personal data are one finding, since a support file may well hold
    some.
    """
    findings: list[Finding] = []
    for kind in (*KINDS, *NUMBERS):
        count = suspects.counts.get(kind.id, 0)
        if not count:
            continue
        rows = suspects.rows[kind.id]
        risk = (
            "take them out and change them: a model repeats what it was trained on"
            if kind.secret
            else "a model may repeat them"
        )
        text = (
            f"{_rows(count)} with what looks like {kind.name}, such as {suspects.shown[kind.id]}:"
            f" {risk} ({rows_words(rows, count)})"
        )
        findings.append(
            Finding(
                id=f"{'secret' if kind.secret else 'personal-data'}-{kind.id}",
                severity="warning",
                text=text,
                count=count,
                rows=tuple(rows),
            )
        )
    return findings


def _constant_answers(notebook: Notebook) -> list[Finding]:
    counted = sum(notebook.answers.values())
    if counted < 2 or notebook.kind not in ("paired", "unpaired_feedback"):
        return []
    digest, count = notebook.answers.most_common(1)[0]
    answer = notebook.shortest_answer.get(digest, "")
    shown = f": '{answer}'" if answer else ""
    if len(notebook.answers) == 1:
        return [
            Finding(
                id="constant-answer",
                severity="error" if notebook.kind == "paired" else "warning",
                text=f"every row has the same answer{shown}: there is nothing to learn",
                count=count,
                blocks=("sft", "classification"),
            )
        ]
    if notebook.format == "classification":
        return class_findings(notebook.classes, enough_rows=notebook.rows >= FEW_ROWS)
    if count >= 0.2 * counted and count >= 5:
        return [
            Finding(
                id="repeated-answer",
                severity="warning",
                text=f"{count / counted:.0%} of the rows have the same answer{shown}",
                count=count,
            )
        ]
    return []


def _balance(notebook: Notebook) -> list[Finding]:
    findings: list[Finding] = []
    if notebook.kind == "preference":
        decided = notebook.longer_chosen + notebook.longer_rejected
        if decided >= 20 and notebook.longer_chosen >= 0.7 * decided:
            share = notebook.longer_chosen / decided
            findings.append(
                Finding(
                    id="chosen-is-longer",
                    severity="note",
                    text=(
                        f"the chosen answer is the longer one in {share:.0%} of the pairs: the"
                        " model may learn length"
                    ),
                    count=notebook.longer_chosen,
                )
            )
    if notebook.kind == "unpaired_feedback" and (notebook.good == 0 or notebook.bad == 0):
        missing = "good" if notebook.good == 0 else "bad"
        findings.append(
            Finding(
                id="one-sided-feedback",
                severity="error",
                text=f"no answer is marked {missing}: learning from feedback needs both",
                count=notebook.rows,
                blocks=("kto",),
            )
        )
    return findings
