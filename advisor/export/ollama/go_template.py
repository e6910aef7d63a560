"""The fixed texts of a chat template as Ollama's TEMPLATE, in the template language of Go."""

from __future__ import annotations

import re
from itertools import groupby

from advisor.data.template_messages import END_MARK
from advisor.data.thoughts import MARK
from advisor.export.ollama.shape import Shape

ESCAPES = {'"': '\\"', "\\": "\\\\", "\n": "\\n", "\t": "\\t", "\r": "\\r"}
PIECE = re.compile(r'"""|.', re.DOTALL)


def go_template(shape: Shape) -> str:
    """The TEMPLATE. Ollama gives it `.Messages`, `.System` with every system message, and `.Think`
    with `.IsThinkSet`; the last message is a question, or an answer to be continued.
    """
    return "".join(
        [
            _head(shape),
            "{{ $asked := false }}" if _first_differs(shape) else "",
            "{{ range $i, $_ := .Messages }}",
            "{{ $last := eq (len (slice $.Messages $i)) 1 }}",
            '{{ if eq .Role "user" }}',
            _question(shape),
            '{{ else if eq .Role "assistant" }}',
            _answer(shape),
            "{{ end }}{{ end }}",
        ]
    )


def go_text(text: str) -> str:
    """A fixed text as it stands in a TEMPLATE.

    An open brace could begin code for Go. Characters that are not printable are dropped by the
    reader of Modelfiles, and three quotes end the TEMPLATE for it. Those are written as code: as a
    text in quotes.
    """
    groups = groupby(PIECE.findall(text), _needs_code)
    return "".join(
        f"{{{{ {go_string(''.join(part))} }}}}" if is_code else "".join(part)
        for is_code, part in groups
    )


def _needs_code(piece: str) -> bool:
    return piece in ('"""', "{") or not (piece in "\n\t " or piece.isprintable())


def go_string(text: str) -> str:
    """A text in quotes, as Go reads it."""
    return '"' + "".join(map(_escaped, text)) + '"'


def _escaped(character: str) -> str:
    if character in ESCAPES:
        return ESCAPES[character]
    if character.isprintable():
        return character
    code = ord(character)
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _head(shape: Shape) -> str:
    head = go_text(shape.head)
    if shape.system is None or shape.system_at_last:
        return head
    before, after = map(go_text, shape.system)
    otherwise = f"{{{{ else }}}}{head}" if head else ""
    return f"{{{{ if .System }}}}{before}{{{{ .System }}}}{after}{otherwise}{{{{ end }}}}"


def _first_differs(shape: Shape) -> bool:
    """Whether the first question is not opened as the others are."""
    after_system = shape.system is None or shape.system_at_last or shape.opens_after_system
    return not (shape.opens_after_head and after_system)


def _question(shape: Shape) -> str:
    opening, closing = map(go_text, shape.user)
    if _first_differs(shape):
        opening = _first_opening(shape, opening) + "{{ $asked = true }}"
    if shape.system is not None and shape.system_at_last:
        before, after = map(go_text, shape.system)
        own = f"{before}{{{{ $.System }}}}{after}"
        follows = opening if shape.opens_after_system else ""
        # The last question: the last message, or the one before an answer to be continued.
        is_last = "le (len (slice $.Messages $i)) 2"
        opening = (
            f"{{{{ if and $.System ({is_last}) }}}}{own}{follows}"
            f"{{{{ else }}}}{opening}{{{{ end }}}}"
        )
    return f"{opening}{{{{ .Content }}}}{closing}{{{{ if $last }}}}{_prompt(shape)}{{{{ end }}}}"


def _first_opening(shape: Shape, opening: str) -> str:
    if shape.system is None or shape.system_at_last:
        condition = "$asked"
    elif shape.opens_after_head:
        condition = "or $asked (not $.System)"
    elif shape.opens_after_system:
        condition = "or $asked $.System"
    else:
        condition = "$asked"
    return f"{{{{ if {condition} }}}}{opening}{{{{ end }}}}"


def _prompt(shape: Shape) -> str:
    usual = go_text(shape.prompt)
    if shape.prompts_by_switch is None:
        return usual
    on, off = (go_text(shape.prompts_by_switch[state]) for state in (True, False))
    if on == usual:
        return f"{{{{ if and $.IsThinkSet (not $.Think) }}}}{off}{{{{ else }}}}{usual}{{{{ end }}}}"
    return (
        f"{{{{ if and $.IsThinkSet $.Think }}}}{on}{{{{ else if $.IsThinkSet }}}}{off}"
        f"{{{{ else }}}}{usual}{{{{ end }}}}"
    )


def _answer(shape: Shape) -> str:
    opening, closing = map(go_text, shape.answer)
    if not shape.drops_thoughts and shape.last_answer == shape.answer[0]:
        return f"{opening}{{{{ .Content }}}}{{{{ if not $last }}}}{closing}{{{{ end }}}}"
    last = go_text(shape.last_answer)
    if shape.drops_thoughts:
        # By this form Ollama knows the marks of thoughts, and takes them out of an answer.
        before, after = map(go_text, shape.thoughts or (f"{MARK}\n", f"\n{END_MARK}\n\n"))
        thoughts = f"{before}{{{{ .Thinking }}}}{after}"
        last = (
            f"{{{{ if .Thinking }}}}{opening}{{{{ if .Thinking }}}}{thoughts}{{{{ end }}}}"
            f"{{{{ else }}}}{last}{{{{ end }}}}"
        )
    return (
        f"{{{{ if $last }}}}{last}{{{{ .Content }}}}"
        f"{{{{ else }}}}{opening}{{{{ .Content }}}}{closing}{{{{ end }}}}"
    )
