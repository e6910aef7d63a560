"""What is conspicuous about the content of data: kept row by row in a notebook of flat size, judged at the end."""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass, field, replace

from advisor.data.example import Example
from advisor.data.examples import shown_rows
from advisor.types import Finding

SHOWN_ROWS = 20
ANSWERS_COUNTED = 100_000  # rows whose answers are compared: enough to see a constant one
FEW_ROWS = 50  # OpenAI's guide sees gains from 50 to 100 examples; runs on 10 and 25 rows are documented failures
LONG_TOKENS = 8192
# Marks that chat templates and tokenizers write themselves: in the text they end a turn early or open a false one.
TEMPLATE_MARKS = ("<|im_start|>", "<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|start_header_id|>", "[INST]", "[/INST]", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>")
MOJIBAKE = ("Ã¤", "Ã¶", "Ã¼", "Ã©", "Ã¨", "Ã±", "â€™", "â€œ", "â€“", "Â ")


@dataclass(slots=True)
class Tally:
    """How many rows show something, and the first of them."""

    count: int = 0
    rows: list[int] = field(default_factory=list)

    def add(self, row: int) -> None:
        self.count += 1
        if len(self.rows) < SHOWN_ROWS:
            self.rows.append(row)

    def finding(self, id: str, severity: str, text: str, blocks: tuple[str, ...] = ()) -> Finding:
        """The finding with its rows named in the text."""
        assert severity in ("error", "warning", "note")
        shown = f"{text} ({shown_rows(self.rows, self.count)})" if self.rows else text
        return Finding(id=id, severity=severity, text=shown, count=self.count, rows=tuple(self.rows), blocks=blocks)  # type: ignore[arg-type]


@dataclass(slots=True)
class Notebook:
    """What was seen so far. Sets of hashes, since a million rows must not cost a million texts."""

    kind: str
    format: str
    rows: int = 0
    seen: set[int] = field(default_factory=set)
    asked: set[int] = field(default_factory=set)
    answers: Counter[int] = field(default_factory=Counter)
    shortest_answer: dict[int, str] = field(default_factory=dict)
    duplicates: Tally = field(default_factory=Tally)
    conflicts: Tally = field(default_factory=Tally)
    long: Tally = field(default_factory=Tally)
    marked: Tally = field(default_factory=Tally)
    mojibake: Tally = field(default_factory=Tally)
    nul: Tally = field(default_factory=Tally)
    unordered: Tally = field(default_factory=Tally)
    longer_chosen: int = 0
    longer_rejected: int = 0
    good: int = 0
    bad: int = 0
    multi_turn: int = 0

    def add(self, example: Example, size_bytes: int) -> None:
        """Notes one example of that many bytes."""
        self.rows += 1
        row = example.row
        messages = example.messages
        if self.kind == "raw_text":
            text = example.text or ""
            key, asked, answer = hash(text), None, None
            parts: tuple[str, ...] = (text,)
        else:
            parts = tuple(message.content for message in messages)
            if self.kind == "preference":
                ends = tuple(message.content for message in example.chosen), tuple(message.content for message in example.rejected)
                key, asked, answer = hash((parts, ends)), None, None
                chosen, rejected = sum(map(len, ends[0])), sum(map(len, ends[1]))
                self.longer_chosen += chosen > rejected
                self.longer_rejected += rejected > chosen
                parts = (*parts, *ends[0], *ends[1])
            elif self.kind == "prompts_with_verifier":
                key, asked, answer = hash((parts, example.answer)), hash(parts), None
            else:
                key, asked, answer = hash((parts, example.good)), hash(parts[:-1]), parts[-1]
                if messages[-1].extra:
                    key = hash((key, repr(messages[-1].extra)))
                    answer = None
            self._look_at_turns(example)
        if key in self.seen:
            self.duplicates.add(row)
        else:
            self.seen.add(key)
            if asked is not None:
                if asked in self.asked and self.kind == "paired":
                    self.conflicts.add(row)
                self.asked.add(asked)
        if answer is not None and self.rows <= ANSWERS_COUNTED:
            digest = hash(answer)
            self.answers[digest] += 1
            if len(self.shortest_answer) < 50:
                self.shortest_answer.setdefault(digest, answer[:60])
        if size_bytes > 4 * LONG_TOKENS:
            self.long.add(row)
        for part in parts:
            self._look_at_text(part, row)
        if example.good is not None:
            self.good += example.good
            self.bad += not example.good

    def _look_at_text(self, text: str, row: int) -> None:
        if "\0" in text:
            self.nul.add(row)
        if ("<" in text or "[" in text) and any(mark in text for mark in TEMPLATE_MARKS):
            self.marked.add(row)
        if not text.isascii() and ("Ã" in text or "â€" in text or "Â" in text) and any(mark in text for mark in MOJIBAKE):
            self.mojibake.add(row)

    def _look_at_turns(self, example: Example) -> None:
        messages = example.messages
        if len(messages) <= 2 and (not messages or messages[0].role == "user"):
            return
        spoken = [message.role for message in messages if message.role != "system"]
        self.multi_turn += spoken.count("assistant") > 1
        if "tool" in spoken or any(message.extra for message in messages):
            return
        wrong = bool(spoken) and (spoken[0] != "user" or any(left == right for left, right in itertools.pairwise(spoken)))
        if wrong or any(message.role == "system" for message in messages[1:]):
            self.unordered.add(example.row)


def look_back(notebook: Notebook, *, whole: bool) -> list[Finding]:
    """The findings of everything noted.

    Args:
        whole: Every row was noted. The beginning of a file may be sorted (all of one class first), so what it lacks blocks nothing.
    """
    findings: list[Finding] = []
    rows = notebook.rows
    if not rows:
        return findings
    if notebook.duplicates.count:
        share = notebook.duplicates.count / rows
        text = f"{notebook.duplicates.count:,} rows repeat an earlier row word for word"
        findings.append(notebook.duplicates.finding("duplicate-rows", "warning" if share > 0.01 else "note", text))
    if notebook.conflicts.count:
        findings.append(notebook.conflicts.finding("same-request-other-answer", "note", f"{notebook.conflicts.count:,} rows ask what an earlier row asks and answer differently"))
    if notebook.nul.count:
        findings.append(notebook.nul.finding("nul-character", "warning", f"{notebook.nul.count:,} texts hold a NUL character"))
    if notebook.marked.count:
        what = "marks of a chat template or tokenizer in the text, such as <|im_end|> or </s>: the trainer adds its own"
        findings.append(notebook.marked.finding("template-marks-in-text", "warning", f"{notebook.marked.count:,} texts hold {what}"))
    if notebook.mojibake.count:
        findings.append(
            notebook.mojibake.finding("mojibake", "warning", f"{notebook.mojibake.count:,} texts look wrongly decoded (Ã© for é): convert the file from its real encoding")
        )
    if notebook.unordered.count:
        text = f"{notebook.unordered.count:,} conversations do not alternate between user and assistant; some chat templates refuse them"
        findings.append(notebook.unordered.finding("turns-do-not-alternate", "warning", text))
    if notebook.long.count and notebook.kind != "raw_text":
        findings.append(notebook.long.finding("very-long-rows", "warning", f"{notebook.long.count:,} rows are longer than about {LONG_TOKENS:,} tokens"))
    if rows < FEW_ROWS and notebook.kind != "raw_text":
        findings.append(
            Finding(id="few-rows", severity="warning", text=f"only {rows} usable row{'s' if rows > 1 else ''}; {FEW_ROWS} to 100 good ones are where gains begin", count=rows)
        )
    judged = [*_constant_answers(notebook), *_balance(notebook)]
    if not whole:
        judged = [replace(finding, severity="warning", text=f"{finding.text} (in the rows read)", blocks=()) if finding.blocks else finding for finding in judged]
    findings.extend(judged)
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
                blocks=("sft",),
            )
        ]
    if notebook.format == "classification":
        least = min(notebook.answers.values())
        if count >= 20 * least:
            return [
                Finding(id="unbalanced-classes", severity="note", text=f"{len(notebook.answers)} classes, the largest {count:,} rows{shown}, the smallest {least:,}", count=count)
            ]
        return []
    if count >= 0.2 * counted and count >= 5:
        return [Finding(id="repeated-answer", severity="warning", text=f"{count / counted:.0%} of the rows have the same answer{shown}", count=count)]
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
                    text=f"the chosen answer is the longer one in {share:.0%} of the pairs: the model may learn length",
                    count=notebook.longer_chosen,
                )
            )
    if notebook.kind == "unpaired_feedback" and (notebook.good == 0 or notebook.bad == 0):
        missing = "good" if notebook.good == 0 else "bad"
        findings.append(
            Finding(id="one-sided-feedback", severity="error", text=f"no answer is marked {missing}: learning from feedback needs both", count=notebook.rows, blocks=("kto",))
        )
    return findings
