"""Text that is safe in HTML and SVG, whatever it came from."""

from __future__ import annotations

from html import escape

from advisor.ground.program import as_called
from advisor.ground.terminal import shown


def text(plain: str, *, keep_lines: bool = False) -> str:
    """Escaped text; control characters, which HTML forbids, as their escapes."""
    safe = shown(as_called(plain))
    return escape(safe if keep_lines else safe.replace("\n", "\\n"), quote=True)
