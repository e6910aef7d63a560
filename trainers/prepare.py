"""Rows of a data file as token ids and labels: templates, masks, lengths, the hold-out split and packing, once for all trainers.

A label of -100 is a token that is read but not learned. Only what the assistant says is learned, up to and including
the token that ends its turn, so that the model learns to stop. Nothing is shortened or left out without a count.
"""

from __future__ import annotations

import hashlib
import re
from bisect import bisect_left, insort
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from advisor.data.example import Example, Message
from advisor.errors import Fault, InputError

IGNORED = -100
STOP_SHARE = 0.05  # more over-long rows than this: stop and ask (pains: rows cut or dropped without a count)

# For a tokenizer that brings no template. It is stored with the result, so that serving uses the same.
PLAIN_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] | capitalize }}: {{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One training sequence."""

    number: int  # of the row in the data file, from 1
    input_ids: tuple[int, ...]
    labels: tuple[int, ...]
    prompt: str  # what a model is asked, as the template writes it, for sample answers; empty for raw text
    shown: str  # the last question of it, for people
    expected: str
    key: str  # equal for rows that ask the same
    text: str  # equal for rows that say the same

    @property
    def tokens(self) -> int:
        return len(self.input_ids)

    @property
    def learned(self) -> int:
        return sum(label != IGNORED for label in self.labels[1:])  # the first token is never predicted


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """The rows of one stage, and what became of those that are not in it."""

    train: tuple[Row, ...]
    holdout: tuple[Row, ...]
    rows: int  # in the file
    dropped: int = 0
    truncated: int = 0
    split: int = 0  # raw texts cut into several sequences, nothing lost
    notes: tuple[str, ...] = ()
    template: str = ""  # where the chat template came from

    def counts(self) -> dict[str, Any]:
        """The numbers for result.json."""
        return {
            "rows": self.rows,
            "train_rows": len(self.train),
            "holdout_rows": len(self.holdout),
            "dropped": self.dropped,
            "truncated": self.truncated,
            "split": self.split,
            "tokens": sum(row.tokens for row in self.train),
            "learned_tokens": sum(row.learned for row in self.train),
            "longest": max(row.tokens for row in self.train),
            "template": self.template,
            "notes": self.notes,
        }


class Templater:
    """Turns conversations into text and marks which characters are learned."""

    def __init__(self, tokenizer: Any, *, learn_all: bool = False) -> None:
        self.tokenizer = tokenizer
        self.learn_all = learn_all
        self.notes: Counter[str] = Counter()
        self.own_template = bool(getattr(tokenizer, "chat_template", None))
        self.turn_ends: set[int] = set()  # tokens seen at the end of an answer: generation must stop at them
        self.special_ids = set(tokenizer.all_special_ids) | {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}

    @property
    def template_source(self) -> str:
        return "the tokenizer's own" if self.own_template else "plain (Role: text), since the tokenizer has none"

    def use_plain_template(self) -> None:
        """Give the tokenizer a template, so that training, saving and serving agree on it."""
        if not getattr(self.tokenizer, "chat_template", None):
            self.tokenizer.chat_template = PLAIN_TEMPLATE

    def rendered(self, messages: Sequence[Message], example: Example, *, prompt: bool = False) -> str:
        """The conversation as the template writes it; with `prompt` up to where the assistant begins to speak."""
        turns = [{"role": item.role, "content": item.content, **item.extra} for item in messages]
        tools = list(example.tools) or None
        try:
            text: str = self.tokenizer.apply_chat_template(turns, tools=tools, tokenize=False, add_generation_prompt=prompt)
        except Exception as error:  # templates raise what they like, mostly jinja2.TemplateError
            raise InputError(
                f"row {example.row}: the chat template refuses this conversation: {error}", hint="roles usually alternate between user and assistant, after at most one system turn"
            ) from None
        return text

    def spans(self, example: Example) -> tuple[str, list[tuple[int, int]]]:
        """The whole text, and the character ranges the assistant says."""
        messages = example.messages
        full = self.rendered(messages, example)
        spans = []
        for index, message in enumerate(messages):
            if message.role != "assistant" or message.weight == 0:
                continue
            before = self.rendered(messages[:index], example, prompt=True) if index else self._opening(example)
            upto = full if index == len(messages) - 1 else self.rendered(messages[: index + 1], example)
            if full.startswith(before) and full.startswith(upto):
                span = (len(before), len(upto))
            else:
                span = self._span_by_change(example, index, full)
            said = message.content.split("</think>")[-1].strip()
            if span[0] >= span[1] or said not in full[span[0] : span[1]]:
                raise InputError(
                    f"row {example.row}: the chat template hides where the answer of turn {index + 1} begins or ends",
                    hint="give the row as a single question and answer, or use a model whose template only adds text",
                )
            spans.append(span)
        return full, spans

    def _opening(self, example: Example) -> str:
        """What stands before an assistant that speaks first; some templates refuse an empty conversation."""
        try:
            return self.rendered((), example, prompt=True)
        except InputError:
            return ""

    def _span_by_change(self, example: Example, index: int, full: str) -> tuple[int, int]:
        """Where the turn's content stands, found by changing it: for templates that rewrite earlier turns (thinking models)."""
        starts, ends = [], []
        for other in ("\u00a4 1", "2 \u00a5"):
            changed = list(example.messages)
            changed[index] = replace(changed[index], content=other)
            text = self.rendered(changed, example)
            start = next((place for place, (a, b) in enumerate(zip(full, text, strict=False)) if a != b), min(len(full), len(text)))
            end = next((place for place, (a, b) in enumerate(zip(reversed(full), reversed(text), strict=False)) if a != b), 0)
            starts.append(start)
            ends.append(len(full) - end)
        start, end = min(starts), max(ends)
        # The end-of-turn token follows the content: take the text up to the end of the next special token.
        after = min((match.end() for token in self.special_ids if (match := _next(full, self.tokenizer.convert_ids_to_tokens(token), end))), default=end)
        return start, after if after - end < 64 else end

    def chat_row(self, example: Example) -> Row:
        """A conversation: learned where the assistant speaks."""
        full, spans = self.spans(example)
        ids, offsets = self._tokens(full, special=False)
        learned = [self.learn_all] * len(ids)
        for start, end in spans:
            self._mark(ids, offsets, learned, start, end, full)
        if self.learn_all:
            self.notes["every token is learned, as loss_on: all says"] = 0
        elif spans and spans[-1][1] >= len(full.rstrip()) and not self._ends_with_stop(ids, learned):
            # The template has no end-of-turn token: without one the model would never learn to stop.
            while learned and not learned[-1]:
                ids.pop(), learned.pop()
            ids.append(self.tokenizer.eos_token_id)
            learned.append(True)
            self.notes[f"rows end with {self.tokenizer.eos_token}, which the chat template leaves out"] += 1
        last = example.messages[-1]
        asked = example.messages[:-1] if last.role == "assistant" else example.messages
        prompt = self.rendered(asked, example, prompt=True) if asked else ""
        key = "\n".join(f"{item.role}: {_normal(item.content)}" for item in asked if item.role != "system")
        return self._row(
            example, ids, learned, prompt=prompt, shown=asked[-1].content if asked else "", expected=last.content if last.role == "assistant" else "", key=key, text=_normal(full)
        )

    def _mark(self, ids: list[int], offsets: list[tuple[int, int]], learned: list[bool], start: int, end: int, full: str) -> None:
        """Mark the tokens of one answer, and stop at the token that ends its turn."""
        inside = [place for place, (a, b) in enumerate(offsets) if start <= a < end and b > a]
        if any(a < start < b for a, b in offsets):
            self.notes["answers begin inside a token of the prompt: that token is not learned"] += 1
        # White space after the end-of-turn token belongs to the template: the model is never asked to write it.
        while inside and ids[inside[-1]] not in self.special_ids and not full[offsets[inside[-1]][0] : offsets[inside[-1]][1]].strip():
            if not any(ids[place] in self.special_ids for place in inside):
                break
            inside.pop()
        for place in inside:
            learned[place] = True
        if inside and ids[inside[-1]] in self.special_ids:
            self.turn_ends.add(ids[inside[-1]])

    def _ends_with_stop(self, ids: list[int], learned: list[bool]) -> bool:
        last = max((place for place, mark in enumerate(learned) if mark), default=None)
        return last is not None and ids[last] in self.special_ids

    def plain_row(self, example: Example) -> Row:
        """Prompt and completion as they stand, where there is no template: learned from the completion on."""
        prompt = "".join(message.content for message in example.messages[:-1])
        answer = example.messages[-1].content
        glue = "" if not prompt or prompt[-1].isspace() or answer[:1].isspace() else " "
        full = prompt + glue + answer
        ids, offsets = self._tokens(full, special=True)
        learned = [self.learn_all or (a >= len(prompt) and b > a) for a, b in offsets]
        self._end(ids, learned)
        return self._row(example, ids, learned, prompt=prompt, shown=prompt, expected=answer, key=_normal(prompt), text=_normal(full))

    def text_row(self, example: Example) -> Row:
        """Raw text: every token is learned."""
        text = example.text or ""
        ids, _ = self._tokens(text, special=True)
        learned = [True] * len(ids)
        self._end(ids, learned)
        return self._row(example, ids, learned, prompt="", shown="", expected="", key=_normal(text), text=_normal(text))

    def _end(self, ids: list[int], learned: list[bool]) -> None:
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            learned[-1] = True
            return
        ids.append(self.tokenizer.eos_token_id)
        learned.append(True)

    def _tokens(self, text: str, *, special: bool) -> tuple[list[int], list[tuple[int, int]]]:
        if not self.tokenizer.is_fast:
            raise InputError(
                "this model's tokenizer cannot say which token comes from which text (it has no fast version)", hint="convert it to tokenizer.json, or take another model"
            )
        encoded = self.tokenizer(text, add_special_tokens=special, return_offsets_mapping=True, return_attention_mask=False)
        return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]

    def _row(self, example: Example, ids: list[int], learned: list[bool], **texts: str) -> Row:
        labels = tuple(token if mark else IGNORED for token, mark in zip(ids, learned, strict=True))
        return Row(number=example.row, input_ids=tuple(ids), labels=labels, **texts)


def _next(text: str, token: str, start: int) -> re.Match[str] | None:
    return re.compile(re.escape(token)).search(text, start)


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def tokenised(examples: Iterable[Example], templater: Templater) -> list[Row]:
    """Every example as a row. Raises InputError naming the rows that hold nothing to learn."""
    rows, faults = [], []
    for example in examples:
        if example.label is not None and example.text is not None and not example.messages:
            example = replace(example, messages=(Message("user", example.text), Message("assistant", example.label)), text=None)
        if example.chosen:  # preference data: the better answer is learned
            example = replace(example, messages=(*example.messages, *example.chosen))
        if not example.messages and example.text is None:
            faults.append(Fault(what=f"row {example.row}: neither a conversation nor a text, which is what this objective learns from"))
            continue
        try:
            if not example.messages:
                row = templater.text_row(example)
            elif example.plain and not templater.own_template:
                row = templater.plain_row(example)
            else:
                templater.use_plain_template()
                row = templater.chat_row(example)
        except InputError as error:
            faults.extend(error.faults)
            continue
        if row.learned == 0:
            faults.append(Fault(what=f"row {row.number}: no token to learn: no answer, an empty one, or every answer has weight 0"))
        rows.append(row)
    if faults:
        raise InputError(faults=faults)
    if not rows:
        raise InputError("the data has no rows")
    return rows


@dataclass
class _Fitted:
    rows: list[Row] = field(default_factory=list)
    dropped: int = 0
    truncated: int = 0
    split: int = 0
    notes: list[str] = field(default_factory=list)


def fitted(rows: Sequence[Row], *, seq_len: int, truncation: str) -> _Fitted:
    """The rows within `seq_len`. Raises InputError where too many are over it and the plan does not say what to do."""
    result = _Fitted()
    long = [row for row in rows if row.tokens > seq_len and row.prompt]
    if truncation == "stop" and len(long) > STOP_SHARE * len(rows):
        lengths = sorted(row.tokens for row in rows)
        raise InputError(
            f"{len(long):,} of {len(rows):,} rows are longer than seq_len {seq_len}"
            f" (95 % are within {lengths[int(0.95 * (len(lengths) - 1))]:,} tokens, the longest has {lengths[-1]:,})",
            allowed=f"truncation: stop allows {STOP_SHARE:.0%} of the rows",
            hint="raise seq_len, or set truncation: drop (leave them out) or truncation: truncate (cut their end)",
        )
    for row in rows:
        if row.tokens <= seq_len:
            result.rows.append(row)
        elif not row.prompt:  # raw text: cut into pieces, nothing is lost
            pieces = [(row.input_ids[at : at + seq_len], row.labels[at : at + seq_len]) for at in range(0, row.tokens, seq_len)]
            result.split += 1
            result.rows.extend(replace(row, input_ids=ids, labels=labels) for ids, labels in pieces if len(ids) > 1)
        elif truncation == "truncate":
            cut = replace(row, input_ids=row.input_ids[:seq_len], labels=row.labels[:seq_len])
            if cut.learned:
                result.truncated += 1
                result.rows.append(cut)
            else:
                result.dropped += 1
        else:
            result.dropped += 1
    if result.truncated:
        result.notes.append(f"{result.truncated:,} rows were cut at seq_len {seq_len}: their answers have no end")
    if result.dropped:
        result.notes.append(f"{result.dropped:,} of {len(rows):,} rows were left out: longer than seq_len {seq_len}")
    if result.split:
        result.notes.append(f"{result.split:,} texts were cut into pieces of seq_len {seq_len}; nothing was lost")
    if not result.rows:
        raise InputError(f"no row fits into seq_len {seq_len}", hint=f"the shortest has {min(row.tokens for row in rows):,} tokens")
    return result


def parted(rows: Sequence[Row], *, share: float, seed: int) -> tuple[list[Row], list[Row]]:
    """Train and hold-out rows. What asks the same stays on one side; the split depends on content and seed, not on order.

    Rows that share their question are kept together where most questions differ; where they mostly do not (one prompt
    for all rows), only rows that say the same are.
    """
    asked = {row.key for row in rows}
    by_question = len(asked) * 2 >= len(rows)
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.key if by_question else row.text, []).append(row)
    wanted = round(share * len(rows))
    if share > 0 and wanted == 0 and len(groups) >= 5:
        wanted = 1
    chosen: set[str] = set()
    taken = 0
    for key in sorted(groups, key=lambda text: hashlib.sha256(f"{seed}:{text}".encode()).digest()):
        if taken + len(groups[key]) <= wanted and len(chosen) < len(groups) - 1:
            chosen.add(key)
            taken += len(groups[key])
        if taken >= wanted:
            break
    train = [row for key, group in groups.items() if key not in chosen for row in group]
    holdout = [row for key, group in groups.items() if key in chosen for row in group]
    return sorted(train, key=lambda row: row.number), sorted(holdout, key=lambda row: row.number)


def prepared(examples: Iterable[Example], templater: Templater, *, seq_len: int, truncation: str, holdout: float, seed: int) -> Prepared:
    """All rows of a stage, ready to train on."""
    rows = tokenised(examples, templater)
    fit = fitted(rows, seq_len=seq_len, truncation=truncation)
    train, held = parted(fit.rows, share=holdout, seed=seed)
    notes = [*fit.notes, *(f"{count:,} {text}" if count else text for text, count in templater.notes.items())]
    return Prepared(
        train=tuple(train),
        holdout=tuple(held),
        rows=len(rows),
        dropped=fit.dropped,
        truncated=fit.truncated,
        split=fit.split,
        notes=tuple(notes),
        template=templater.template_source if any(row.prompt for row in rows) else "none (raw text)",
    )


def packed(rows: Sequence[Row], seq_len: int) -> list[tuple[Row, ...]]:
    """Rows in bins of at most `seq_len` tokens (best fit, longest first). Deterministic."""
    bins: list[list[Row]] = []
    rooms: list[tuple[int, int]] = []  # (tokens left, bin), sorted
    for row in sorted(rows, key=lambda row: (-row.tokens, row.number)):
        place = bisect_left(rooms, (row.tokens, -1))
        if place < len(rooms):
            room, index = rooms.pop(place)
            bins[index].append(row)
        else:
            room, index = seq_len, len(bins)
            bins.append([row])
        insort(rooms, (room - row.tokens, index))
    return [tuple(group) for group in bins]


def columns(groups: Sequence[Sequence[Row]], *, lengths: bool) -> dict[str, list[list[int]]]:
    """The columns of the trainer's dataset, one entry per group of rows laid end to end."""
    table: dict[str, list[list[int]]] = {
        "input_ids": [[token for row in group for token in row.input_ids] for group in groups],
        # The first token of a row must not be predicted from the row before it.
        "labels": [[label for row in group for label in (IGNORED, *row.labels[1:])] for group in groups],
    }
    if lengths:
        table["seq_lengths"] = [[row.tokens for row in group] for group in groups]
    return table
