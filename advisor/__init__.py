"""Finetune advisor: which fine-tuning method to use, why, and one file that runs it.

From a program: `from advisor import advise` (docs/programs.md). The names below are loaded when
they are first used, so that `import advisor` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from advisor.ground.version import __version__

if TYPE_CHECKING:
    from advisor.api import Answers, advise, advise_document
    from advisor.ground.errors import AdviseError

__all__ = ["AdviseError", "Answers", "__version__", "advise", "advise_document"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'advisor' has no attribute '{name}'")
    from advisor import api

    return getattr(api, name)
