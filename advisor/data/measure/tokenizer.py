"""A model's own tokenizer and chat template, where its folder is at hand: exact lengths, and
whether the template takes the rows.

Both packages are free of torch and come with the training extra. Without them lengths are
approximated, and that is said.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from advisor.data.checks.tally import Tally
from advisor.data.same_rows import Example, Message, system_in_question
from advisor.data.template_messages import PLAIN_TEMPLATE, lost_parts, template_messages
from advisor.data.thoughts import (
    MARK,
    SWITCHES,
    answers_of,
    contradiction_text,
    holds_thoughts,
    missing_text,
    switch_of,
    unknown_text,
)
from advisor.ground.errors import InputError
from advisor.ground.files import text_of
from advisor.ground.hub_cache import hub_model_folder
from advisor.ground.installed import install_line
from advisor.ground.types import Finding

TOKENS = ("bos_token", "eos_token", "pad_token", "unk_token")
REFUSED_SHARE = 0.05  # of the rows tried: more, and a run stops at them
# What a template leaves out of rows -> the finding: id, severity, text. Rows of an `error` cannot
# be trained on: where they are many, a run stops at them.
LOST = {
    "calls": (
        "template-drops-calls",
        "error",
        "the chat template of {model} does not write the tool calls of {rows} tried: they cannot be"
        " trained on; take a model whose template does, or put such a chat_template.jinja into its"
        " folder",
    ),
    "tools": (
        "template-drops-tools",
        "warning",
        "the chat template of {model} does not show the model the tools of {rows} tried",
    ),
    "turns": (
        "template-drops-turns",
        "warning",
        "the chat template of {model} leaves out or rewrites turns of tools or users in {rows}"
        " tried",
    ),
    "thoughts": (
        "template-drops-thoughts",
        "warning",
        "the chat template of {model} leaves out the thoughts behind the answers of {rows} tried:"
        " the model would learn to answer without them",
    ),
}


@dataclass(slots=True)
class ModelTokenizer:
    """Counts tokens as one model does. Callable, as `profile` wants it."""

    name: str
    model: str
    _encode: Any
    _template: Any = None  # a compiled Jinja template
    _tokens: Mapping[str, str] = field(default_factory=dict)  # bos_token, eos_token ...
    _special: tuple[str, ...] = ()
    _arguments: Mapping[str, Any] = field(default_factory=dict)  # of the template
    _source: str = ""  # of the template
    _is_plain: bool = False  # the one that the trainers give a model without a template
    _template_file: str = "the chat template"
    answered: int = 0  # rows tried that teach an answer
    thoughtful: Tally = field(default_factory=Tally)
    tried: int = 0
    refused: Tally = field(default_factory=Tally)
    hidden: Tally = field(default_factory=Tally)
    without_system: Tally = field(default_factory=Tally)
    without_end: Tally = field(default_factory=Tally)
    moved_system: Tally = field(default_factory=Tally)
    lost: Mapping[str, Tally] = field(
        default_factory=lambda: {part: Tally() for part in LOST}
    )  # what the template leaves out -> the rows
    _takes_system: bool | None = None
    complaint: str = ""
    conversations: int = 0

    def __call__(self, text: str) -> int:
        return len(self._encode(text, add_special_tokens=False).ids)

    def rendered(self, example: Example) -> tuple[str, ...] | None:
        """The request and the whole sequence (of a pair: both) as the chat template writes them;
        None where it cannot.
        """
        if example.label is None and not example.plain:
            self.conversations += 1
        if self._template is None or not example.messages or (self._is_plain and example.plain):
            return None
        messages = self._as_trained(example)
        ends = [example.chosen, example.rejected] if example.chosen else []
        asked = messages if ends or messages[-1].role != "assistant" else messages[:-1]
        self.tried += 1
        try:
            request = self._render(asked, example, prompt=True) if asked else ""
            wholes = [self._render((*messages, *end), example) for end in ends] or [
                self._render(messages, example) if asked is not messages else request
            ]
        except InputError:  # it does not come to an end
            raise
        except (
            Exception
        ) as error:  # a template may raise anything: its author's own complaints among it
            self.refused.add(example.row)
            self.complaint = (
                self.complaint or str(error).splitlines()[0][:160]
                if str(error)
                else type(error).__name__
            )
            return None
        answers = answers_of(example)
        self.answered += bool(answers)
        if any(map(holds_thoughts, answers)):
            self.thoughtful.add(example.row)
        self._look(example, messages if not ends else (*messages, *example.chosen), wholes[0])
        return (request, *wholes)

    def _as_trained(self, example: Example) -> tuple[Message, ...]:
        """The conversation as the trainers write it: a system turn that the template refuses, and
        nothing else, goes into the first question.
        """
        moved = system_in_question(example.messages)
        if moved is None:
            return example.messages
        if self._takes_system is None:  # asked once: a template refuses the turn, not its words
            self._takes_system = self._renders(example.messages[:2], example) or not self._renders(
                moved[:1], example
            )
        if self._takes_system:
            return example.messages
        self.moved_system.add(example.row)
        return moved

    def _renders(self, messages: tuple[Message, ...], example: Example) -> bool:
        try:
            self._render(messages, example)
        except InputError:  # it does not come to an end
            raise
        except Exception:  # a template may raise anything
            return False
        return True

    def _render(
        self, messages: tuple[Message, ...], example: Example, *, prompt: bool = False
    ) -> str:
        return self._written(
            example.row,
            messages=template_messages(messages),
            tools=[dict(tool) for tool in example.tools] or None,
            add_generation_prompt=prompt,
            **self._tokens,
            **self._arguments,
        )

    def _written(self, row: int | None, **given: Any) -> str:
        """What the template writes. Raises InputError where it does not come to an end."""
        from advisor.ground.bounded_template import TemplateLimit

        try:
            return str(self._template.render(**given))
        except TemplateLimit as error:
            raise error.of(self._template_file, row) from None

    def _look(self, example: Example, messages: tuple[Message, ...], whole: str) -> None:
        """What the template does to the row: does the answer stand in it, the system text, and
        something that ends the turn?
        """
        if example.tools or any(message.extra for message in messages) or MARK in whole:
            for part in lost_parts(
                messages, example.tools, whole, lambda other: self._render(tuple(other), example)
            ):
                self.lost[part].add(example.row)
        last = messages[-1]
        if messages[0].role == "system" and messages[0].content.strip() not in whole:
            self.without_system.add(example.row)
        said = last.content.split("</think>")[-1].strip()
        if last.role != "assistant" or not said:
            return
        _, found, tail = whole.rpartition(said)
        if not found:
            self.hidden.add(example.row)
        elif not any(token in tail for token in self._special):
            self.without_end.add(example.row)

    def _about_arguments(self) -> list[Finding]:
        """Arguments that the template does not know, and thoughts that it asks for or not."""
        unknown = [
            Finding(
                id="template-argument-unknown",
                severity="error",
                text=f"the chat template of {self.model} never reads '{name}'",
            )
            for name in self._arguments
            if not re.search(rf"\b{re.escape(name)}\b", self._source)
        ]

        def asked(**arguments: Any) -> str:
            return self._written(
                None,
                messages=[{"role": "user", "content": "Hello"}],
                add_generation_prompt=True,
                **{**self._tokens, **self._arguments, **arguments},
            )

        switch = switch_of(self._source, asked)
        if any(self._arguments.get(name) is False for name in SWITCHES):
            switch = None
        return unknown + thinking_findings(
            switch,
            answered=self.answered,
            thoughtful=self.thoughtful,
            source=self._source,
            arguments=self._arguments,
        )

    def findings(self, objectives: tuple[str, ...]) -> list[Finding]:
        """How the template fits the rows that were tried."""
        findings: list[Finding] = []
        if self._template is None or self._is_plain:
            if self.conversations:
                text = (
                    f"{self.model} has no chat template: it was not trained on conversations; the"
                    " trainers write them as `User: ...` and `Assistant: ...`, and store this plain"
                    " template with the result"
                )
                findings.append(
                    Finding(
                        id="model-without-chat-template",
                        severity="warning",
                        text=text,
                        count=self.conversations,
                    )
                )
            if self._template is None:
                return findings
        findings += self._about_arguments()
        if self.refused.count:
            many = self.refused.count > REFUSED_SHARE * self.tried
            text = (
                f"the chat template of {self.model} refuses {self.refused.count:,} of"
                f" {self.tried:,} rows tried: {self.complaint}"
            )
            findings.append(
                self.refused.finding(
                    "template-refuses-rows",
                    "error" if many else "warning",
                    text,
                    objectives if many else (),
                )
            )
        if self.hidden.count:
            text = (
                f"the chat template of {self.model} leaves the answer out of {self.hidden.count:,}"
                f" of {self.tried:,} rows tried"
            )
            findings.append(
                self.hidden.finding("template-hides-answers", "error", text, objectives)
            )
        for part, (name, severity, text) in LOST.items():
            tally = self.lost[part]
            if not tally.count:
                continue
            many = severity == "error" and tally.count > REFUSED_SHARE * self.tried
            findings.append(
                tally.finding(
                    name,
                    "error" if many else "warning" if severity == "error" else severity,
                    text.format(model=self.model, rows=f"{tally.count:,} of {self.tried:,} rows"),
                    objectives if many else (),
                )
            )
        if self.without_system.count:
            text = (
                f"the chat template of {self.model} drops the system text of"
                f" {self.without_system.count:,} of {self.tried:,} rows tried"
            )
            findings.append(
                self.without_system.finding("template-drops-system-text", "warning", text)
            )
        if self.moved_system.count:
            text = (
                f"the chat template of {self.model} takes no system turn: the trainers put the"
                f" system text of {self.moved_system.count:,} rows in front of the first question"
            )
            findings.append(self.moved_system.finding("template-without-system-turn", "note", text))
        if self.without_end.count:
            text = (
                f"the chat template of {self.model} writes nothing that ends a turn: the trainers"
                " add the end-of-text token, or the model would never stop"
            )
            findings.append(self.without_end.finding("template-without-end-of-turn", "note", text))
        return findings


def thinking_findings(
    switch: str | None,
    *,
    answered: int,
    thoughtful: Tally,
    source: str,
    arguments: Mapping[str, Any],
) -> list[Finding]:
    """Where the thoughts in the data and those of the model's template disagree."""
    told_off = any(arguments.get(name) is False for name in SWITCHES)
    if thoughtful.count and told_off:
        text = contradiction_text(thoughtful.count, arguments)
        return [thoughtful.finding("thoughts-switched-off", "warning", text)]
    if thoughtful.count and "think" not in source and "reason" not in source:
        return [thoughtful.finding("thoughts-unknown", "note", unknown_text(thoughtful.count))]
    if answered and not thoughtful.count and switch is not None:
        text = missing_text(switch)
        return [Finding(id="no-thoughts", severity="warning", text=text, count=answered)]
    return []


def model_tokenizer(
    model: str, arguments: Mapping[str, Any] | None = None
) -> tuple[ModelTokenizer | None, str]:
    """The tokenizer of a model folder, or of a hub model in the cache; else None and why lengths
    are approximated.

    Args:
        model: A folder, or a name of the hub.
        arguments: Of its chat template, such as enable_thinking.
    """
    from importlib.util import find_spec

    folder = _folder(model)
    if folder is None:
        return None, f"{model}: no folder with a tokenizer.json at hand; lengths are approximated"
    if find_spec("tokenizers") is None:
        return (
            None,
            (
                "the tokenizers package is not installed; lengths are approximated"
                f" ({install_line()})"
            ),
        )
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # the package raises a bare Exception
        return (
            None,
            (
                f"{folder / 'tokenizer.json'} cannot be read ({str(error)[:100]}); lengths are"
                " approximated"
            ),
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokens = special_texts(folder)
    special = tuple(
        entry["content"]
        for entry in json_object(folder / "tokenizer.json").get("added_tokens", [])
        if entry.get("special")
    )
    source = template_source(folder)
    template, note = _template(folder, PLAIN_TEMPLATE if source is None else source)
    special = tuple(dict.fromkeys((*special, *tokens.values())))
    return (
        ModelTokenizer(
            name=f"tokenizer of {model}",
            model=model,
            _encode=tokenizer.encode,
            _template=template,
            _tokens=tokens,
            _special=special,
            _arguments=arguments or {},
            _source=source or "",
            _is_plain=source is None,
            _template_file=str(template_file(folder)),
        ),
        note,
    )


TRIED_ROWS = 200  # of the data, by advice; `advise check` tries all that it counts
# Findings about a template that decide whether the data fit the model.
DECIDING = (
    "model-without-chat-template",
    "template-refuses-rows",
    "template-hides-answers",
    "template-drops-system-text",
    *(name for name, _, _ in LOST.values()),
)


def has_template(model: str) -> bool | None:
    """Whether a model has a chat template; None if its files are not at hand."""
    folder = _folder(model)
    return None if folder is None else template_source(folder) is not None


def template_at_hand(model: str, rows: Iterable[Example]) -> tuple[Finding, ...]:
    """How the chat template of a model at hand takes the first rows of data; () if it is not at
    hand or cannot be tried.

    Without counting tokens, so that it needs jinja2 alone.
    """
    folder = _folder(model)
    if folder is None:
        return ()
    source = template_source(folder)
    template, _ = _template(folder, PLAIN_TEMPLATE if source is None else source)
    if source is not None and template is None:
        return ()
    tokens = special_texts(folder)
    tried = ModelTokenizer(
        name=model,
        model=model,
        _encode=None,
        _template=template,
        _tokens=tokens,
        _source=source or "",
        _is_plain=source is None,
        _template_file=str(template_file(folder)),
    )
    for row in islice(rows, TRIED_ROWS):
        tried.rendered(row)
    return tuple(one for one in tried.findings(("sft",)) if one.id in DECIDING)


def switch_at_hand(model: str) -> str | None:
    """What switches the thoughts of a model off (thoughts.switch_of), by the chat template in its
    folder or in the hub's cache; None if it is not at hand or cannot be tried.
    """
    folder = _folder(model)
    source = template_source(folder) if folder is not None else None
    if folder is None or source is None or ("think" not in source and "reason" not in source):
        return None
    template, _ = _template(folder, source)
    if template is None:
        return None
    settings = json_object(folder / "tokenizer_config.json")
    question = [{"role": "user", "content": "Hello"}]
    tokens = {key: _token_text(settings.get(key)) or "" for key in TOKENS}

    def asked(**arguments: Any) -> str:
        given = {**tokens, **arguments}
        return str(template.render(messages=question, add_generation_prompt=True, **given))

    try:
        return switch_of(source, asked)
    except InputError:  # it does not come to an end: the rows say so when they are written with it
        return None


def _folder(model: str) -> Path | None:
    folder = Path(model)
    if (folder / "tokenizer.json").is_file():
        return folder
    if folder.exists() or model.count("/") > 1:
        return None
    found = sorted((hub_model_folder(model) / "snapshots").glob("*/tokenizer.json"))
    return found[-1].parent if found else None


def json_object(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model's folder; {} if there is none, or it is damaged."""
    try:
        value = json.loads(text_of(path))
    except (OSError, ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _token_text(value: Any) -> str | None:
    return (
        value
        if isinstance(value, str)
        else value.get("content")
        if isinstance(value, Mapping)
        else None
    )


def template_file(folder: Path) -> Path:
    """The file of a model's folder that holds its chat template."""
    own = folder / "chat_template.jinja"
    return own if own.is_file() else folder / "tokenizer_config.json"


def template_source(folder: Path) -> str | None:
    """The chat template of a model's folder; None if it has none."""
    path = folder / "chat_template.jinja"
    source: Any = (
        text_of(path)
        if path.is_file()
        else json_object(folder / "tokenizer_config.json").get("chat_template")
    )
    if isinstance(source, list):  # several, by name
        source = next(
            (
                entry.get("template")
                for entry in source
                if isinstance(entry, Mapping) and entry.get("name") == "default"
            ),
            None,
        )
    return source if isinstance(source, str) else None


def special_texts(folder: Path) -> dict[str, str]:
    """The special tokens of a folder's tokenizer that chat templates name: bos_token -> its
    text.
    """
    settings = json_object(folder / "tokenizer_config.json")
    return {key: text for key in TOKENS if (text := _token_text(settings.get(key))) is not None}


def _template(folder: Path, source: str | None) -> tuple[Any, str]:
    """As `compiled_template`, of a folder; (None, "") without a source."""
    return (None, "") if source is None else compiled_template(source, f"chat template of {folder}")


def compiled_template(source: str, name: str) -> tuple[Any, str]:
    """The compiled chat template, or None; and a note where there is one that cannot be tried.

    Args:
        name: What the note calls it, after "the".
    """
    from importlib.util import find_spec

    if find_spec("jinja2") is None:
        return (
            None,
            (f"the chat template was not tried: jinja2 is not installed ({install_line()})"),
        )
    import jinja2
    from jinja2.ext import Extension

    from advisor.ground.bounded_template import BoundedEnvironment

    class Generation(Extension):
        """`{% generation %}` as transformers has it: marks what the assistant says, and writes it
        as it is.
        """

        tags = {"generation"}  # noqa: RUF012 - jinja2 reads it from the class

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return jinja2.nodes.Scope(body, lineno=line)

    def refuse(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def now(form: str) -> str:
        import datetime

        return datetime.datetime.now().strftime(form)

    environment = BoundedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = lambda value, indent=None, **_options: json.dumps(
        value, ensure_ascii=False, indent=indent
    )
    environment.globals.update(raise_exception=refuse, strftime_now=now)
    try:
        return environment.from_string(source), ""
    except Exception as error:  # Python's own among them: nested too deeply
        return (
            None,
            (
                f"the {name} is broken ({str(error)[:120]}): the model cannot be"
                " trained on conversations with it"
            ),
        )


def with_template_fit(
    findings: tuple[Finding, ...], tokenizer: ModelTokenizer, objectives: tuple[str, ...]
) -> tuple[Finding, ...]:
    """The findings with those about the chat template, worst first."""
    order = ("error", "warning", "note")
    return tuple(
        sorted(
            [*findings, *tokenizer.findings(objectives)],
            key=lambda finding: order.index(finding.severity),
        )
    )
