"""The templates of report and model card, and what each makes of a text from outside.

Every value that a template shows is escaped: no name, path or answer becomes markup.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from advisor.ground.resources import as_called
from advisor.ground.terminal import shown

if TYPE_CHECKING:
    from jinja2 import Environment
    from markupsafe import Markup

TEMPLATES = Path(__file__).with_name("templates")
CODE = re.compile(r"`([^`]+)`")


def html_text(value: object) -> str:
    """A value on one line; control characters, which HTML forbids, as their escapes."""
    return shown(as_called(str(value))).replace("\n", "\\n")


def markdown_text(value: object) -> str:
    """A value on one line of Markdown: it starts no HTML, table cell or code."""
    line = shown(str(value)).replace("\n", "\\n")
    return re.sub(r"[|<`\[]", lambda found: f"&#{ord(found[0])};", line)


def render_html(template: str, values: Mapping[str, Any]) -> str:
    """A page from an HTML template."""
    return html_templates().get_template(template).render(values)


def render_markdown(template: str, values: Mapping[str, Any]) -> str:
    """A text from a Markdown template."""
    from markupsafe import Markup

    environment = _environment(markdown_text, autoescape=False)
    environment.filters |= {
        # A name from outside neither ends a block of code nor opens a tag.
        "shell": lambda line: Markup(shown(line).replace("`", "_").replace("<", "_")),  # noqa: S704
        "yaml": lambda word: Markup(  # noqa: S704
            word if re.fullmatch(r"[\w./-]+", word, re.ASCII) else json.dumps(word)
        ),
    }
    return environment.get_template(template).render(values)


def _interval(found: Sequence[float | None] | None) -> str:
    """'-2.2 to -1.8'; '' if it is not known."""
    low, high = found if found is not None and len(found) == 2 else (None, None)
    return f"{low:+.3g} to {high:+.3g}" if low is not None and high is not None else ""


@cache
def html_templates() -> Environment:
    """The HTML templates, each shown value escaped."""
    from markupsafe import Markup, escape

    def marked(text: str) -> Markup:
        """Escaped text with what stands between backticks as code."""
        return Markup(CODE.sub(r"<code>\1</code>", str(escape(html_text(text)))))  # noqa: S704

    environment = _environment(html_text, autoescape=True)
    environment.filters |= {
        "marked": marked,
        "with_lines": lambda text: escape(shown(as_called(text))),
        "kind": lambda block: type(block).__name__,
        "number": lambda value: "" if value is None else f"{value:.4g}",
        "count": lambda value: f"{value:,}",
        "share": lambda value: "" if value is None else f"{value:.1%}",
        "interval": _interval,
        "words": lambda text: " ".join((text or "").split()),
    }
    return environment


def _environment(as_text: Callable[[object], str], *, autoescape: bool) -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701 - Markdown is escaped by `as_text`
        undefined=StrictUndefined,
        finalize=lambda value: value if isinstance(value, Markup) else as_text(value),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
