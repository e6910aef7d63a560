"""The words of `vllm serve` for what a run left: one base with several LoRA modules, or one whole
model.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from advisor.plan.vllm import largest_rank


@dataclass(frozen=True, kw_only=True, slots=True)
class VllmServer:
    """One server. Paths are written as they are given."""

    model: str  # a hub id or a folder
    modules: Sequence[tuple[str, str]] = ()  # (the name that requests ask for, folder)
    rank: int | None = None  # the largest of the modules; None: not known
    name: str | None = None  # what requests call a whole model; None: its path
    template: str | None = None  # a file; None: that of the model
    generation: str | None = None  # the folder of a generation_config.json; None: the model's
    more: Sequence[Sequence[str]] = ()  # further options

    def options(self) -> list[list[str]]:
        """The words behind `vllm serve MODEL`, one list an option."""
        options: list[list[str]] = []
        if self.name is not None:
            options.append(["--served-model-name", self.name])
        if self.modules:
            options.append(["--enable-lora"])
            if self.rank is not None:  # vLLM's own limit is 16, and it takes certain sizes alone
                options.append(["--max-lora-rank", str(largest_rank(self.rank))])
            if len(self.modules) > 1:
                options.append(["--max-loras", str(len(self.modules))])
        if self.template is not None:
            options.append(["--chat-template", self.template])
        if self.generation is not None:
            options.append(["--generation-config", self.generation])
        options += [list(option) for option in self.more]
        if self.modules:
            named = [f"{name}={folder}" for name, folder in self.modules]
            options.append(["--lora-modules", *named])
        return options

    def line(self) -> str:
        """One line for a shell."""
        words = [word for option in self.options() for word in option]
        return shlex.join(["vllm", "serve", self.model, *words])
