"""The marks that OpenAI's guide to its old completions models asked for: every prompt ends with a
separator, every completion begins with a blank and ends with a stop mark. A chat template says by
itself where a turn ends; with the marks left in, a model learns to write them.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from advisor.data.example import Example, Message

# Longest first: of those that fit, the first is taken.
SEPARATORS = ("\n\n###\n\n", "\n\n###", "\n###\n", "\n\n->", "\n->", " ->", "->", "###")
STOPS = ("\n\n###\n\n", "\n\n###", "\n###", " ###", "###", "\nEND", " END", " STOP", "\n")
MOST_WITHOUT = 0.05  # of the rows may lack a mark: fewer lack it by mistake
FEWEST_ROWS = 3


@dataclass(slots=True)
class CompletionMarks:
    """How many rows of a file have each mark."""

    rows: int = 0
    separators: dict[str, int] = field(default_factory=dict)
    stops: dict[str, int] = field(default_factory=dict)
    blanks: int = 0

    def look(self, example: Example) -> None:
        """Notes one row, if it is a prompt and its completion as texts."""
        if not example.plain or len(example.messages) != 2:
            return
        prompt, completion = (message.content for message in example.messages)
        self.rows += 1
        for mark in SEPARATORS:
            if prompt.endswith(mark):
                self.separators[mark] = self.separators.get(mark, 0) + 1
        for mark in STOPS:
            if completion.endswith(mark) and completion.strip() != mark.strip():
                self.stops[mark] = self.stops.get(mark, 0) + 1
        self.blanks += completion[:1] == " "

    def _common(self, counts: dict[str, int], marks: tuple[str, ...]) -> str:
        enough = (1 - MOST_WITHOUT) * self.rows
        return next((mark for mark in marks if counts.get(mark, 0) >= enough), "")

    @property
    def separator(self) -> str:
        """What the prompts end with; "" for nothing."""
        return self._common(self.separators, SEPARATORS) if self.rows >= FEWEST_ROWS else ""

    @property
    def stop(self) -> str:
        """What the completions end with; "" for nothing."""
        return self._common(self.stops, STOPS) if self.rows >= FEWEST_ROWS else ""

    @property
    def found(self) -> bool:
        """Whether the file is of that kind: a separator or a stop mark, not a blank alone."""
        return bool(self.separator or self.stop.strip())

    def words(self) -> str:
        """'the prompts end with "###", the completions begin with a blank and end with "END"'."""
        parts = []
        if self.separator:
            parts.append(f"the prompts end with {self.separator!r}")
        begin = self.blanks >= (1 - MOST_WITHOUT) * self.rows
        said = [*(["begin with a blank"] if begin else [])]
        said += [f"end with {self.stop!r}"] if self.stop else []
        return ", ".join([*parts, *([f"the completions {' and '.join(said)}"] if said else [])])

    def without(self, example: Example) -> Example:
        """The row without the marks that the file has."""
        if not self.found or not example.plain or len(example.messages) != 2:
            return example
        prompt, completion = (message.content for message in example.messages)
        said = completion.removesuffix(self.stop).strip() if self.stop else completion.strip()
        asked = prompt.removesuffix(self.separator).rstrip() if self.separator else prompt
        if not said or not asked:
            return example
        return replace(example, messages=(Message("user", asked), Message("assistant", said)))
