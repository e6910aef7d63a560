"""Conversations as the tokenizer's chat template writes them, and which characters and tokens of
that the assistant says.

Where the template has a {% generation %} tag, the tag says it. Elsewhere the text with an answer is
compared with the text before it, and where a template rewrites earlier turns (thinking models), the
answer is found by changing it. Each answer ends with the token that ends its turn, so that the
model learns to stop. A row in which this cannot be told for certain is refused, never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from advisor.data.example import Message, system_in_question
from advisor.ground.errors import InputError
from trainers.prepare.row import Unusable
from trainers.prepare.turns import OTHERS, as_turns, called, in_other_words, unify_turn, words

Span = tuple[int, int]  # of characters

# For a tokenizer that brings no template. It is stored with the result, so that serving uses the
# same.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] | capitalize }}: {{ message['content'] }}{% if"
    " message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}{% if"
    " add_generation_prompt %}Assistant:{% endif %}"
)
BOS = "{{ bos_token }}"
GENERATION_TAG = re.compile(r"\{%-?\s*generation\s*-?%\}")
MARKS = re.compile(
    r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_turn>"
)  # what templates write around turns

REFUSED = "the chat template refuses this conversation"
HIDDEN = "the chat template hides where an answer begins or ends"
NO_TOOLS = "the chat template does not write tool calls"
ALL_LEARNED = "the mask would cover what others say"


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation as text."""

    text: str
    spans: tuple[Span, ...]  # what the assistant says and is learned, in order
    prompt: str  # everything before the last answer, as a model is asked


class Templater:
    """Turns conversations into text and tokens, and marks what is learned."""

    def __init__(self, tokenizer: Any, *, learn_all: bool = False) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                "this model's tokenizer cannot say which token comes from which text (it has no"
                " fast version)",
                hint="convert it to tokenizer.json, or take another model",
            )
        self.tokenizer = tokenizer
        self.learn_all = learn_all
        self.notes: Counter[str] = Counter()  # what was conspicuous, in how many rows
        self._noted: set[str] = set()
        self.own_template = bool(getattr(tokenizer, "chat_template", None))
        self.turn_ends: set[int] = (
            set()
        )  # tokens seen at the end of an answer: generation must stop at them
        self.special_ids = set(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        special = sorted(
            (tokenizer.convert_ids_to_tokens(index) for index in self.special_ids),
            key=len,
            reverse=True,
        )
        self.special_text = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def begin(self) -> None:
        """Another row: what is noted from here on counts anew."""
        self._noted.clear()

    def note(self, text: str) -> None:
        """Count something conspicuous about the row, once."""
        if text not in self._noted:
            self._noted.add(text)
            self.notes[text] += 1

    # ------------------------------------------------------------------ the template

    @property
    def template_source(self) -> str:
        return (
            "the tokenizer's own"
            if self.own_template
            else "plain (Role: text), since the tokenizer has none"
        )

    def use_plain_template(self) -> None:
        """Give the tokenizer a template where it has none, so that training, saving and serving
        agree on it.
        """
        if not getattr(self.tokenizer, "chat_template", None):
            starts = self.tokenizer("", add_special_tokens=True)["input_ids"]
            begins = self.tokenizer.bos_token_id is not None and starts[:1] == [
                self.tokenizer.bos_token_id
            ]
            self.tokenizer.chat_template = (BOS if begins else "") + PLAIN_TEMPLATE

    def rendered(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        prompt: bool = False,
    ) -> str:
        """The conversation as the template writes it; with `prompt` up to where the assistant
        begins to speak. Raises Unusable.
        """
        try:
            text: str = self.tokenizer.apply_chat_template(
                as_turns(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        except Exception as error:  # templates raise what they like, mostly jinja2.TemplateError
            raise Unusable(
                REFUSED,
                f"{error} (roles usually alternate between user and assistant, after at most one"
                " system turn)",
            ) from None
        return text

    @cached_property
    def _takes_system(self) -> bool:
        """False where the template refuses a system turn and nothing else about the
        conversation.
        """
        question = Message("user", OTHERS[0])
        try:
            self.rendered((Message("system", OTHERS[1]), question))
        except Unusable:
            try:
                self.rendered((question,))
            except Unusable:
                return True
            return False
        return True

    def without_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation with its system text in front of the first question, where the template
        refuses system turns (Gemma, early Mistral).
        """
        moved = system_in_question(messages)
        if moved is None or self._takes_system:
            return messages
        self.note(
            "the chat template takes no system turn: the system text stands in front of the first"
            " question"
        )
        return moved

    def _header(self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]) -> str:
        """What the template writes to let the assistant begin."""
        before = messages or (
            Message("user", OTHERS[0]),
        )  # an empty conversation cannot be rendered
        asked, waiting = self.rendered(before, tools, prompt=True), self.rendered(before, tools)
        return asked[unify_turn(asked, waiting) :]

    def _opening(self, tools: Sequence[Mapping[str, Any]], full: str) -> str:
        """What stands before an assistant that speaks first."""
        header = self._header((), tools)
        place = full.find(header)
        return full[: place + len(header)] if header and place >= 0 else ""

    def _tagged(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], full: str
    ) -> list[Span] | None:
        """The ranges of the {% generation %} tag, one for each assistant turn; None where the
        template does not say so.
        """
        template = self.tokenizer.get_chat_template(tools=list(tools) or None)
        if not GENERATION_TAG.search(template):
            return None
        from transformers.utils.chat_template_utils import render_jinja_template

        texts, ranges = render_jinja_template(
            [as_turns(messages)],
            tools=list(tools) or None,
            chat_template=template,
            return_assistant_tokens_mask=True,
            **self.tokenizer.special_tokens_map,
        )
        found = [(start, end) for start, end in ranges[0]]
        said = sum(message.role == "assistant" for message in messages)
        return found if texts[0] == full and len(found) == said else None

    # ------------------------------------------------------------------ what the assistant says

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        since: int = 0,
    ) -> Chat:
        """The whole text, and the character ranges of the answers from turn `since` on.

        Raises Unusable.
        """
        own = self.without_system(messages)
        messages, since = own, since - (len(messages) - len(own))
        full = self.rendered(messages, tools)
        tagged = self._tagged(messages, tools, full)
        spans: list[Span] = []
        prompt, turn = "", -1
        for index, message in enumerate(messages):
            if message.role != "assistant":
                continue
            turn += 1
            last = index == len(messages) - 1
            if not last and (message.weight == 0 or index < since):
                continue
            before = (
                self.rendered(messages[:index], tools, prompt=True)
                if index
                else self._opening(tools, full)
            )
            if last:
                prompt = before
            if message.weight == 0 or index < since:
                continue
            if message.weight != 1:
                self.note("a message has a weight other than 0 and 1: it counts as 1")
            if not (message.content.strip() or message.extra):
                self.note("an empty answer is read but not learned")
                continue
            upto = full if last else self.rendered(messages[: index + 1], tools)
            if tagged is not None:
                span = self._ended(
                    full,
                    tagged[turn],
                    lambda index=index, upto=upto: self._after(messages, index, tools, upto),
                )
            elif full.startswith(before) and full.startswith(upto) and len(before) < len(upto):
                span = self._trimmed(full, (len(before), len(upto)), message)
            else:
                span = self._changed(messages, index, tools, full, upto)
            self._check(message, full, span, spans, index)
            spans.append(span)
        if messages and messages[-1].role != "assistant":
            prompt = self.rendered(messages, tools, prompt=True)
        elif prompt and not full.startswith(prompt):
            self.note(
                "a new answer is begun by the template in another way than the answers in the data"
                " (a thinking model, mostly)"
            )
        self._look(messages, tools, full)
        return Chat(full, tuple(spans), prompt)

    def _check(
        self, message: Message, full: str, span: Span, before: Sequence[Span], index: int
    ) -> None:
        """Raise Unusable where the range does not hold what was said, or holds more than one
        turn.
        """
        start, end = span
        text = full[start:end]
        where = f"turn {index + 1}"
        if start >= end or words(message) not in text or (before and start < before[-1][1]):
            raise Unusable(HIDDEN, where)
        if any(name not in text for name in called(message)):
            raise Unusable(NO_TOOLS, where)

    def _trimmed(self, full: str, span: Span, message: Message) -> Span:
        """The range without what the template writes after the token that ends the turn: no model
        is ever asked to write that.
        """
        start, end = span
        said = words(message)
        place = full.rfind(said, start, end)
        if said and place >= 0 and not called(message):
            stop = self.special_text.search(full, place + len(said), end)
            if stop:
                return start, stop.end()
        stops = list(self.special_text.finditer(full, start, end))
        kept = len(full[:end].rstrip())
        return start, (
            stops[-1].end()
            if stops and not full[stops[-1].end() : end].strip()
            else max(start, kept)
        )

    def _ended(self, full: str, span: Span, after: Callable[[], str]) -> Span:
        """The range up to and including the token that ends the turn, where that follows the
        answer.

        Args:
            after: Tells what the template writes after this answer when nothing follows it.
        """
        start, end = span
        said = full[start:end].rstrip()
        last = list(self.special_text.finditer(said))
        if last and last[-1].end() == len(said):
            return start, start + len(said)
        stop = self.special_text.search(after())
        follows = self.special_text.match(full, len(full) - len(full[end:].lstrip()))
        # Without a stop token at the end of a conversation, what follows here is the mark of the
        # next speaker.
        return (
            (start, follows.end())
            if stop and follows
            else (start, max(start, len(full[:end].rstrip())))
        )

    def _after(
        self, messages: Sequence[Message], index: int, tools: Sequence[Mapping[str, Any]], upto: str
    ) -> str:
        """What the template writes after the answer of a turn when the conversation ends there."""
        _, end = self._difference(messages[: index + 1], index, tools, upto)
        return upto[end:]

    def _difference(
        self, messages: Sequence[Message], index: int, tools: Sequence[Mapping[str, Any]], full: str
    ) -> Span:
        """Where the turn's own words stand in the text, found by changing them."""
        starts, ends = [], []
        for other in OTHERS:
            changed = list(messages)
            changed[index] = in_other_words(messages[index], other)
            text = self.rendered(changed, tools)
            start = unify_turn(full, text)
            end = unify_turn(full[::-1], text[::-1])
            starts.append(start)
            ends.append(len(full) - end)
        return min(starts), max(ends)

    def _changed(
        self,
        messages: Sequence[Message],
        index: int,
        tools: Sequence[Mapping[str, Any]],
        full: str,
        upto: str,
    ) -> Span:
        """The range of an answer in a template that writes earlier turns in another way than the
        last one.
        """
        start, end = self._difference(messages, index, tools, full)
        after = self._after(messages, index, tools, upto)
        header = self._header(messages[:index], tools)
        opened = full.rfind(header, 0, start) if header else -1
        own = opened + len(header)
        asked = messages[index - 1].content.strip() if index else ""
        if opened < 0 or (asked and asked in full[own:start]):
            # The mark of an earlier turn, or none: begin where the words do. Of a call only a part
            # would be found so.
            if called(messages[index]):
                raise Unusable(HIDDEN, f"turn {index + 1}")
            own = start
        if called(messages[index]):
            # The change lies inside the call: what closes it, up to the last mark that both texts
            # write, belongs to it.
            same = after[: unify_turn(after, full[end:])]
            marks = list(self.special_text.finditer(same))
            return own, end + (marks[-1].end() if marks else len(same.rstrip()))
        return self._ended(full, (own, end), lambda: after)

    def _look(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]], full: str
    ) -> None:
        """Count what the template leaves out, and marks inside the words of people."""
        for message in messages:
            if message.role != "assistant" and message.content.strip() not in full:
                self.note(f"{message.role} turns are left out or rewritten by the chat template")
                break
        if any(self.special_text.search(message.content) for message in messages):
            self.note(
                "a message holds a mark of the chat template as text (such as an end-of-turn"
                " token): it is read as that token"
            )
        names = [
            tool.get("function", tool).get("name")
            for tool in tools
            if isinstance(tool, Mapping) and isinstance(tool.get("function", tool), Mapping)
        ]
        if any(isinstance(name, str) and name not in full for name in names):
            self.note("tools are not shown to the model: the chat template has no place for them")

    # ------------------------------------------------------------------ tokens

    def encoded(self, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
        """Token ids and the characters each comes from.

        `special`: with the tokens that the tokenizer itself puts around a text.
        """
        encoded = self.tokenizer(
            text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]

    def masked(self, chat: Chat) -> tuple[list[int], list[bool]]:
        """Token ids of a conversation, and which of them are learned.

        Raises Unusable where the mask would be all ones.
        """
        ids, offsets = self.encoded(chat.text, special=False)
        learned = [False] * len(ids)
        closed = True
        for span in chat.spans:
            closed = self._mark(ids, offsets, learned, span, chat.text)
        if chat.prompt.strip() and chat.spans and all(learned):
            raise Unusable(ALL_LEARNED)
        if chat.spans and not closed and not chat.text[chat.spans[-1][1] :].strip():
            # The template has no end-of-turn token: without one the model would never learn to
            # stop.
            while learned and not learned[-1]:
                ids.pop(), learned.pop()
            self.end(ids, learned)
            self.note(
                f"rows end with {self.tokenizer.eos_token}, which the chat template leaves"
                f" out{self._foreign_marks()}"
            )
        if self._open_turns(ids, learned):
            self.note(
                "an answer in the middle of a conversation has no end-of-turn token: the chat"
                " template writes none"
            )
        return ids, [True] * len(ids) if self.learn_all else learned

    def _mark(
        self, ids: list[int], offsets: list[Span], learned: list[bool], span: Span, text: str
    ) -> bool:
        """Mark the tokens of one answer.

        True where the last of them is a token that ends a turn.
        """
        start, end = span
        inside = []
        for place, (a, b) in enumerate(offsets):
            if a >= end or b <= start or b <= a:
                continue
            if a < start and text[a:start].strip():
                self.note("answers begin inside a token of the prompt: that token is not learned")
                continue
            inside.append(place)
        for place in inside:
            learned[place] = True
        if inside and ids[inside[-1]] in self.special_ids:
            self.turn_ends.add(ids[inside[-1]])
            return True
        return False

    def _open_turns(self, ids: Sequence[int], learned: Sequence[bool]) -> bool:
        """True where an answer that others follow does not end with a special token."""
        edges = (
            place for place in range(len(ids) - 1) if learned[place] and not learned[place + 1]
        )
        return any(ids[place] not in self.special_ids for place in edges)

    def end(self, ids: list[int], learned: list[bool]) -> None:
        """Let the sequence end with the end token, learned, whether or not the tokenizer writes
        it.
        """
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            learned[-1] = True
            return
        ids.append(self.tokenizer.eos_token_id)
        learned.append(True)

    def _foreign_marks(self) -> str:
        """Marks that the template writes and this tokenizer does not know as tokens: it belongs to
        another model.
        """
        template = self.tokenizer.chat_template
        text = template if isinstance(template, str) else " ".join(map(str, template.values()))
        known = self.tokenizer.get_vocab()
        foreign = sorted({mark for mark in MARKS.findall(text) if mark not in known})
        return (
            f"; it writes {', '.join(foreign[:3])}, which"
            f" {'are no tokens' if len(foreign) > 1 else 'is no token'} of this tokenizer"
            if foreign
            else ""
        )
