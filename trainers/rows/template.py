"""Conversations as the tokenizer's chat template writes them, and which of their characters and
tokens are the assistant's answers.

A template with a {% generation %} tag says so itself. For others the text with an answer is
compared with the text before it; if the template rewrites earlier turns (thinking models), the
answer is found by changing it. Each answer ends with the token that ends its turn, so that the
model learns to stop. A row whose answers cannot be found for certain is refused, never guessed.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from msgspec.structs import replace

from advisor.data.example import Message, system_in_question
from advisor.data.templates.bounded import TemplateLimit, bound_chat_templates
from advisor.data.templates.chat_text import (
    MARK,
    PLAIN_TEMPLATE,
    SWITCHES,
    called_functions,
    contradiction_text,
    dropped_text,
    may_think,
    missing_text,
    names_of_tools,
    switch_of,
    template_file,
    template_messages,
    unknown_text,
)
from advisor.ground.errors import InputError
from trainers.rows.row import Unusable
from trainers.rows.template_arguments import (
    GENERATION_TAG,
    arguments_of,
    arguments_words,
    template_sources,
)

Span = tuple[int, int]  # of characters

BOS = "{{ bos_token }}"
# Shows on screen how the plain template writes.
SHOWN = (Message("user", "Hello"), Message("assistant", "Good morning"))
OTHER_TEXTS = ("\u00a4 1", "2 \u00a5")  # with no common beginning or end
# what templates write around turns
MARKS = re.compile(r"<\|[^<>|\s]{1,40}\|>|<(?:start|end)_of_turn>")

REFUSED = "the chat template refuses this conversation"
HIDDEN = "the chat template hides where an answer begins or ends"
NO_TOOLS = "the chat template does not write tool calls"
ALL_LEARNED = "the mask would also cover what others say"


@dataclass(frozen=True, slots=True)
class Chat:
    text: str
    spans: tuple[Span, ...]  # the answers to learn, in order
    prompt: str  # everything before the last answer


def is_plain(tokenizer: Any) -> bool:
    """True if the tokenizer's chat template is the plain one that training gave it."""
    template = getattr(tokenizer, "chat_template", None)
    return isinstance(template, str) and template.removeprefix(BOS) == PLAIN_TEMPLATE


def template_record(tokenizer: Any) -> dict[str, Any]:
    """The fields of ResolvedSettings about the chat template that is stored with the result."""
    return {"template": arguments_of(tokenizer), "plain_template": is_plain(tokenizer)}


class Templater:
    """Turns conversations into text and tokens, and marks the tokens to learn."""

    def __init__(self, tokenizer: Any, *, learn_all: bool = False) -> None:
        if not tokenizer.is_fast:
            raise InputError(
                "this model's tokenizer cannot say which token comes from which text (it has no"
                " fast version)",
                hint="convert it to tokenizer.json, or take another model",
            )
        bound_chat_templates()
        self.tokenizer = tokenizer
        self.row: int | None = None  # the number of the row that is being written
        self.learn_all = learn_all
        self.notes: Counter[str] = Counter()  # remark -> how many rows it concerns
        self._noted: set[str] = set()
        self.remarks: list[str] = []  # about the template, whatever the rows
        self.own_template = bool(getattr(tokenizer, "chat_template", None))
        self.gave_template = False  # a plain one, to a tokenizer without any
        # tokens seen at the end of an answer: generation must stop at them
        self.turn_ends: set[int] = set()
        self.special_ids = set(tokenizer.all_special_ids) | {
            index for index, token in tokenizer.added_tokens_decoder.items() if token.special
        }
        special = sorted(
            (tokenizer.convert_ids_to_tokens(index) for index in self.special_ids),
            key=len,
            reverse=True,
        )
        self.special_text = re.compile("|".join(map(re.escape, special)) or r"(?!)")

    def begin_row(self, row: int | None = None) -> None:
        """Begin another row, with its number: each remark counts once per row."""
        self.row = row
        self._noted.clear()

    def note(self, text: str) -> None:
        """Count a remark about the row, once."""
        if text not in self._noted:
            self._noted.add(text)
            self.notes[text] += 1

    # ------------------------------------------------------------------ the template

    @property
    def template_source(self) -> str:
        """Where the chat template came from, in words, with the arguments that the plan gives."""
        if not getattr(self.tokenizer, "chat_template", None):
            return "none: a question and its answer follow each other as plain text"
        if is_plain(self.tokenizer):
            return "plain (Role: text), since the tokenizer has none"
        given = arguments_words(arguments_of(self.tokenizer))
        return "the tokenizer's own" + (f" with {given}" if given else "")

    def use_plain_template(self) -> None:
        """Give a tokenizer without a template a plain one, so that training, saving and serving
        agree on it; say once how it writes.
        """
        tokenizer = self.tokenizer
        if getattr(tokenizer, "chat_template", None):
            return
        starts, bos = tokenizer("", add_special_tokens=True)["input_ids"], tokenizer.bos_token_id
        tokenizer.chat_template = (BOS if bos in starts[:1] else "") + PLAIN_TEMPLATE
        self.gave_template = True
        self.remarks.append(
            "the model has no chat template: a conversation is written as"
            f" {self.render(SHOWN)!r}, and this plain template is stored with the result"
        )

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        prompt: bool = False,
    ) -> str:
        """The conversation as the template writes it. Raises Unusable if the template refuses it.

        Args:
            prompt: Also write what the template puts in front of a new answer.
        """
        with self._refusals():
            text: str = self.tokenizer.apply_chat_template(
                template_messages(messages),
                tools=list(tools) or None,
                tokenize=False,
                add_generation_prompt=prompt,
            )
        return text

    @contextmanager
    def _refusals(self) -> Iterator[None]:
        try:
            yield
        except TemplateLimit as error:
            folder = Path(str(getattr(self.tokenizer, "name_or_path", "") or "the tokenizer"))
            raise error.of(str(template_file(folder)), self.row) from None
        except Exception as error:  # templates raise what they like, mostly jinja2.TemplateError
            raise Unusable(
                REFUSED,
                f"{error} (roles usually alternate between user and assistant, after at most one"
                " system turn)",
            ) from None

    def written(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> tuple[str, list[Span] | None]:
        """(the conversation as text, the ranges of the {% generation %} tag, one for each answer);
        None in their place if the template has no such tag.
        """
        template = self.tokenizer.get_chat_template(tools=list(tools) or None)
        if not GENERATION_TAG.search(template):
            return self.render(messages, tools), None
        from transformers.utils.chat_template_utils import render_jinja_template

        with self._refusals():
            texts, ranges = render_jinja_template(
                [template_messages(messages)],
                tools=list(tools) or None,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self.tokenizer.special_tokens_map,
            )
        found = [(start, end) for start, end in ranges[0]]
        answers = sum(message.role == "assistant" for message in messages)
        return texts[0], found if len(found) == answers else None

    def thoughts_note(self, answered: int, thoughtful: int) -> str | None:
        """What to do if the model thinks and the data holds no thoughts, or the other way round;
        None if they agree.

        Args:
            answered: How many examples teach an answer.
            thoughtful: How many of them hold thoughts.
        """
        if not self.own_template or not answered:
            return None
        source = "\n".join(template_sources(self.tokenizer).values())
        arguments = arguments_of(self.tokenizer)
        if thoughtful and any(arguments.get(name) is False for name in SWITCHES):
            return contradiction_text(thoughtful, arguments)
        if thoughtful and not self._writes_thoughts:
            return dropped_text(thoughtful)
        if not may_think(source):
            return unknown_text(thoughtful) if thoughtful else None
        write, question = self.tokenizer.apply_chat_template, template_messages(SHOWN[:1])
        given = {"tokenize": False, "add_generation_prompt": True}
        switch = switch_of(source, partial(write, question, **given))
        return missing_text(switch) if switch is not None and not thoughtful else None

    @cached_property
    def _writes_thoughts(self) -> bool:
        """False if the template leaves the thoughts of an answer out (DeepSeek-R1's, which is made
        for chats that go on).
        """
        thought, answer = OTHER_TEXTS
        content = f"{MARK}\n{thought}\n</think>\n\n{answer}"
        try:
            return thought in self.render((SHOWN[0], Message("assistant", content)))
        except Unusable:
            return True

    @cached_property
    def _takes_system(self) -> bool:
        """False if the template refuses a system turn and nothing else about the
        conversation.
        """
        question = Message("user", OTHER_TEXTS[0])
        with suppress(Unusable):
            self.render((Message("system", OTHER_TEXTS[1]), question))
            return True
        with suppress(Unusable):
            self.render((question,))
            return False
        return True

    def without_system(self, messages: Sequence[Message]) -> Sequence[Message]:
        """The conversation with its system text in front of the first question, if the template
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

    # ------------------------------------------------------------------ the answers

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] = (),
        *,
        since: int = 0,
    ) -> Chat:
        """The conversation as text with the character ranges of its answers.

        Raises Unusable if an answer cannot be found for certain.

        Args:
            since: Only answers from this message on.
        """
        own = self.without_system(messages)
        messages, since = own, since - (len(messages) - len(own))
        writing = Writing(self, messages, tools)
        learned = []
        for index, message in enumerate(messages):
            if message.role != "assistant" or message.weight == 0 or index < since:
                continue
            if message.weight != 1:
                self.note("a message has a weight other than 0 and 1: it counts as 1")
            if not (message.content.strip() or message.extra):
                self.note("an empty answer is read but not learned")
                continue
            learned.append(index)
        spans = writing.spans(learned)
        if messages and messages[-1].role == "assistant":
            prompt = writing.before(len(messages) - 1)
            if prompt and not writing.full.startswith(prompt):
                self.note(
                    "a new answer is begun by the template in another way than the answers in the"
                    " data (a thinking model, mostly)"
                )
        else:
            prompt = self.render(messages, tools, prompt=True) if messages else ""
        # What the template leaves out, and special tokens in the words of people.
        full = writing.full
        for message in messages:
            if message.role != "assistant" and message.content.strip() not in full:
                self.note(f"{message.role} turns are left out or rewritten by the chat template")
                break
        if any(self.special_text.search(message.content) for message in messages):
            self.note(
                "a message holds a mark of the chat template as text (such as an end-of-turn"
                " token): it is read as that token"
            )
        if any(name not in full for name in names_of_tools(tools)):
            self.note("tools are not shown to the model: the chat template has no place for them")
        return Chat(full, tuple(spans), prompt)

    # ------------------------------------------------------------------ tokens

    def encode(self, text: str, *, special: bool) -> tuple[list[int], list[Span]]:
        """(token ids, the characters that each comes from).

        Args:
            special: With the tokens that the tokenizer puts around a text.
        """
        encoded = self.tokenizer(
            text,
            add_special_tokens=special,
            return_offsets_mapping=True,
            return_attention_mask=False,
        )
        return list(encoded["input_ids"]), [tuple(pair) for pair in encoded["offset_mapping"]]

    def tokenise(self, chat: Chat) -> tuple[list[int], list[bool]]:
        """(token ids of a conversation, which of them are learned).

        Raises Unusable if every token would be learned, the prompt too.
        """
        ids, offsets = self.encode(chat.text, special=False)
        learned, last = [False] * len(ids), None
        place = 0
        for start, end in chat.spans:
            while place < len(ids) and offsets[place][1] <= start:
                place += 1
            last = None
            while place < len(ids) and offsets[place][0] < end:
                a, b = offsets[place]
                if a < start and b > a and chat.text[a:start].strip():
                    self.note(
                        "answers begin inside a token of the prompt: that token is not learned"
                    )
                elif b > a:
                    learned[place], last = True, ids[place]
                place += 1
            if last is not None and last in self.special_ids:
                self.turn_ends.add(last)
        if chat.prompt.strip() and chat.spans and all(learned):
            raise Unusable(ALL_LEARNED)
        is_open = bool(chat.spans) and last not in self.special_ids
        if is_open and not chat.text[chat.spans[-1][1] :].strip():
            # The template has no end-of-turn token, and without one the model would never learn to
            # stop.
            while learned and not learned[-1]:
                ids.pop(), learned.pop()
            self.append_end_token(ids, learned)
            self.note(
                f"rows end with {self.tokenizer.eos_token}, which the chat template leaves"
                f" out{self._foreign_marks()}"
            )
        if any(
            now and not then and token not in self.special_ids
            for token, now, then in zip(ids, learned, learned[1:], strict=False)
        ):
            self.note(
                "an answer in the middle of a conversation has no end-of-turn token: the chat"
                " template writes none"
            )
        return ids, [True] * len(ids) if self.learn_all else learned

    def append_end_token(self, ids: list[int], learned: list[bool]) -> None:
        """End the sequence with the end token, to be learned, whether or not the tokenizer wrote
        it.
        """
        if ids and ids[-1] == self.tokenizer.eos_token_id:
            learned[-1] = True
            return
        ids.append(self.tokenizer.eos_token_id)
        learned.append(True)

    def _foreign_marks(self) -> str:
        """A remark on marks that the template writes and that are no tokens here: it belongs to
        another model.
        """
        text, known = (
            " ".join(template_sources(self.tokenizer).values()),
            self.tokenizer.get_vocab(),
        )
        foreign = sorted({mark for mark in MARKS.findall(text) if mark not in known})
        if not foreign:
            return ""
        are = "are no tokens" if len(foreign) > 1 else "is no token"
        return f"; it writes {', '.join(foreign[:3])}, which {are} of this tokenizer"


class Writing:
    """A conversation as the template writes it, and where its answers are."""

    def __init__(
        self, templater: Templater, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]]
    ) -> None:
        self.messages, self.special_text = messages, templater.special_text
        self.render = partial(templater.render, tools=tools)  # other messages with the same tools
        self.full, self.tagged = templater.written(messages, tools)
        self._beginnings: dict[tuple[int, bool], str] = {(len(messages), False): self.full}

    def _beginning(self, size: int, *, prompt: bool = False) -> str:
        """The text of the first messages, rendered once."""
        key = size, prompt
        if key not in self._beginnings:
            # An empty conversation cannot be rendered.
            first = self.messages[:size] or (Message("user", OTHER_TEXTS[0]),)
            self._beginnings[key] = self.render(first, prompt=prompt)
        return self._beginnings[key]

    def before(self, index: int) -> str:
        """The text that a model would read before it wrote an answer."""
        if index:
            return self._beginning(index, prompt=True)
        header = self._opening(0)
        place = self.full.find(header)
        return self.full[: place + len(header)] if header and place >= 0 else ""

    def _opening(self, index: int) -> str:
        """What the template writes in front of a new answer."""
        asked, waiting = self._beginning(index, prompt=True), self._beginning(index)
        return asked[shared_prefix_length(asked, waiting) :]

    def span(self, index: int) -> Span:
        """The range of one answer, with the token that ends its turn."""
        if self.tagged is not None:
            turn = sum(message.role == "assistant" for message in self.messages[:index])
            return self._with_end_token(self.tagged[turn], lambda: self._after(index))
        before, upto = self.before(index), self._beginning(index + 1)
        if self.full.startswith(before) and self.full.startswith(upto) and len(before) < len(upto):
            return self._without_tail((len(before), len(upto)), self.messages[index])
        return self._by_rewording(index)

    def spans(self, learned: Sequence[int]) -> list[Span]:
        """The ranges of the answers. Raises Unusable if one cannot be found for certain.

        Long chats would take too many renderings: an answer that stands between the same marks as
        the first one begins and ends at the same places in them.
        """
        messages, full = self.messages, self.full
        found: list[Span] = []
        marks: tuple[str, str, str] | None = None  # before the first answer, in it on both sides
        said = [message.content.strip() for message in messages]
        plain = not any(map(self.special_text.search, said))
        unlearned = {said[place] for place in range(len(said)) if place not in learned}
        for index in learned:
            question, words, span = said[index - 1], said[index], None
            is_usual = (
                plain
                and 0 < index < len(messages) - 1
                and messages[index - 1].role == "user"
                and not messages[index].extra
                and "</think>" not in words
                and words not in unlearned
            )
            if marks and is_usual:
                text = question + "".join(marks[:2]) + words + marks[2]
                place = full.find(text, found[-1][1])
                if place >= 0 and full.find(text, place + 1) < 0:
                    span = place + len(question + marks[0]), place + len(text)
            if span is None:
                start, end = span = self.span(index)
                asked, place = full.rfind(question, 0, start), full.find(words, start, end)
                if is_usual and not marks and min(asked, place) >= 0:
                    before = full[asked + len(question) : start]
                    # Only if nobody writes such a mark but the template.
                    if before.strip() and not any(before.strip() in one for one in said):
                        marks = before, full[start:place], full[place + len(words) : end]
            # It holds the words of the message, and no more than one turn.
            start, end = span
            message, text = messages[index], full[start:end]
            if start >= end or spoken_text(message) not in text or (found and start < found[-1][1]):
                raise Unusable(HIDDEN, f"turn {index + 1}")
            if any(name not in text for name in called_functions(message)):
                raise Unusable(NO_TOOLS, f"turn {index + 1}")
            found.append(span)
        return found

    # ------------------------------------------------------------------ one answer

    def _without_tail(self, span: Span, message: Message) -> Span:
        """The range without what the template writes after the token that ends the turn: no model
        has to write that.
        """
        start, end = span
        text, spoken = self.full[start:end], spoken_text(message)
        stops = list(self.special_text.finditer(text))
        if spoken and not called_functions(message):
            # An answer such as "t" is also a part of <|endoftext|>.
            words = self.special_text.sub(lambda stop: "\0" * len(stop[0]), text)
            place = max(words.rfind(spoken), text.rfind(spoken) if spoken not in words else -1)
            for stop in stops:
                if 0 <= place <= stop.start() - len(spoken):
                    return start, start + stop.end()
        if stops and not text[stops[-1].end() :].strip():
            return start, start + stops[-1].end()
        return start, start + len(text.rstrip())

    def _with_end_token(self, span: Span, after: Callable[[], str]) -> Span:
        """The range up to and including the token that ends the turn, if one follows the answer.

        Args:
            after: Gives what the template writes after this answer if it is the last.
        """
        (start, end), full = span, self.full
        answer = full[start:end].rstrip()
        last = list(self.special_text.finditer(answer))
        if last and last[-1].end() == len(answer):
            return start, start + len(answer)
        follows = self.special_text.match(full, len(full) - len(full[end:].lstrip()))
        # If the conversation ends without a stop token, what follows here is the mark of the next
        # speaker.
        if follows and self.special_text.search(after()):
            return start, follows.end()
        return start, max(start, len(full[:end].rstrip()))

    def _after(self, index: int) -> str:
        """What the template writes after an answer if the conversation ends there."""
        upto = self._beginning(index + 1)
        return upto[self._changed(index, self.messages[: index + 1], upto)[1] :]

    def _changed(self, index: int, messages: Sequence[Message], text: str) -> Span:
        """The range of a message's own words in the text of some messages, found by changing
        them.
        """
        starts, ends = [], []
        for other in OTHER_TEXTS:
            changed = list(messages)
            changed[index] = with_other_words(messages[index], other)
            found = self.render(changed)
            starts.append(shared_prefix_length(text, found))
            ends.append(len(text) - shared_prefix_length(text[::-1], found[::-1]))
        return min(starts), max(ends)

    def _by_rewording(self, index: int) -> Span:
        """The range of an answer if the template writes earlier turns in another way than the last
        one, found by changing the answer's words.
        """
        messages, full = self.messages, self.full
        start, end = self._changed(index, messages, full)
        after, header = self._after(index), self._opening(index)
        opened = full.rfind(header, 0, start) if header else -1
        own = opened + len(header)
        question = messages[index - 1].content.strip() if index else ""
        calls = called_functions(messages[index])
        if (
            opened < 0
            # A short one, such as "a", also stands in what the template writes before an answer.
            or (
                (question and question in full[own:start])
                and self._changed(index - 1, messages, full)[1] > own
            )
        ):
            # The mark of an earlier turn, or none: begin at the first word. This would find only a
            # part of a call.
            if calls:
                raise Unusable(HIDDEN, f"turn {index + 1}")
            own = start
        if calls:
            # The change is inside the call: what closes the call, up to the last mark that both
            # texts have, belongs to it.
            same = after[: shared_prefix_length(after, full[end:])]
            marks = list(self.special_text.finditer(same))
            return own, end + (marks[-1].end() if marks else len(same.rstrip()))
        return self._with_end_token((own, end), lambda: after)


def shared_prefix_length(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many characters or tokens two texts have in common at their beginning."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low


def spoken_text(message: Message) -> str:
    """What a message says after its reasoning, without the space around it."""
    return message.content.split("</think>")[-1].strip()


def with_other_words(message: Message, other: str) -> Message:
    """The same message with another text, and calls of other functions with other arguments."""
    calls = template_messages((message,))[0].get("tool_calls")
    changed = replace(message, content=other) if message.content.strip() or not calls else message
    if not calls:
        return changed
    extra = {key: value for key, value in message.extra.items() if key != "function_call"}
    extra["tool_calls"] = [
        {
            **call,
            "function": {**call.get("function", {}), "name": other, "arguments": {other: other}},
        }
        for call in calls
    ]
    return replace(changed, extra=extra)
