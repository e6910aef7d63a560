"""A picture of the decision for people: questions, and what each answer leads to.

Every line is asked of the loaded rules when the picture is drawn: one situation, and what becomes
of it with one thing changed. A rule that changes an answer changes the picture with it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from advisor.advice.advise import open_case
from advisor.ground.types import Answer, AnswerSet, Hardware
from advisor.methods import objective, update
from advisor.methods.composition import Composition
from advisor.methods.remedies import remedy
from advisor.ruleset.model import Ruleset
from advisor.ruleset.phrases import inside_sentence, says
from advisor.situation.build import situation_of
from tools.generate.svg import Canvas, wrapped

TITLE = "How a recommendation is made"
MODEL, CARD = "Qwen/Qwen3-8B", "RTX 4090"
BASE: Mapping[str, Any] = {
    "task": "customer_service",
    "model": MODEL,
    "gpu": CARD,
    "data_kind": "paired",
    "data_rows": 5000,
    "data_tokens": 1_500_000,
}
WIDTH, MARGIN, PAD = 560, 16, 16
QUESTION, WORDS, SMALL = 17.0, 15.0, 13.0
LINE = 19
ANSWER_WIDTH = 210
INK, SOFT, CARD_FILL, EDGE, STRONG = "#0f172a", "#475569", "#f1f5f9", "#94a3b8", "#1d4ed8"
PAPER = "#ffffff"
DARK = {INK: "#f1f5f9", SOFT: "#cbd5e1", CARD_FILL: "#1e293b", EDGE: "#64748b"}
DARK |= {STRONG: "#93c5fd", PAPER: "#0f172a"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """One answer to a question: what is said, in words or as the rules' facts say it."""

    changes: Mapping[str, Any] = field(default_factory=dict)
    words: str = ""  # in place of what the changed facts say


@dataclass(frozen=True, kw_only=True, slots=True)
class Question:
    """A question, what it looks at, and answers with what they lead to."""

    ask: str
    looks_at: str
    lines: tuple[Line, ...]


def kinds(*names: str) -> tuple[Line, ...]:
    """One line for each kind of data."""
    return tuple(Line(changes={"data_kind": name}) for name in names)


def gpus(*names: str) -> tuple[Line, ...]:
    """One line for each GPU, with an 8B model."""
    return tuple(Line(changes={"gpu": name}, words=f"an 8B model on one {name}") for name in names)


QUESTIONS = (
    Question(
        ask="Do you need to train at all?",
        looks_at="task, data, what was tried, how often facts change",
        lines=(
            Line(changes={"prompt_meets_quality_bar": True}),
            Line(changes={"data_kind": "raw_text"}),
            Line(changes={"facts_change_often": True}),
            Line(changes={"data_rows": 25, "data_tokens": 7_500}, words="you have 25 examples"),
            Line(words="none of these"),
        ),
    ),
    Question(
        ask="What does the model learn from?",
        looks_at="what your data hold",
        lines=(
            *kinds("paired", "preference", "unpaired_feedback", "prompts_with_verifier"),
            Line(
                changes={
                    "task": "domain_expertise",
                    "depth": "domain_knowledge",
                    "data_kind": "raw_text",
                    "data_rows": 200_000,
                    "data_tokens": 500_000_000,
                },
                words="you have 500M tokens of text on a field, and want an expert in it",
            ),
        ),
    ),
    Question(
        ask="Which weights are trained, and do they fit?",
        looks_at="memory, time and money, computed for your GPU",
        lines=(
            *gpus("RTX 4060 8GB", CARD, "A100 80GB"),
            Line(
                changes={"model": "meta-llama/Llama-3.1-70B", "gpu": "A100 80GB"},
                words="a 70B model on one A100 80GB",
            ),
            Line(
                changes={"task": "classification", "model": None},
                words="sorting texts into categories: a small model does",
            ),
        ),
    ),
    Question(
        ask="One job, or several?",
        looks_at="how many teams share the model",
        lines=(
            Line(words="one job"),
            Line(changes={"task": "multi_department", "n_tasks": 6}, words="six teams"),
        ),
    ),
)


def picture(rules: Ruleset) -> str:
    """The SVG's text."""
    canvas, y = Canvas(), 44.0
    canvas.text(MARGIN, y, TITLE, 22, fill=INK, bold=True)
    said = (
        f"Example: {number(BASE['data_rows'])} support requests with answers, {MODEL}, one {CARD}."
        " Each line changes one thing."
    )
    for line in wrapped(said, WIDTH - 2 * MARGIN, SMALL):
        y += LINE
        canvas.text(MARGIN, y, line, SMALL, fill=SOFT)
    y += 18
    described = []
    for place, question in enumerate(QUESTIONS, 1):
        answers = [(words_of(rules, line), outcome(rules, line)) for line in question.lines]
        described.append(
            f"{place}. {question.ask} "
            + "; ".join(f"{words}: {composition}" for words, composition in answers)
        )
        y = draw_question(canvas, y, place, question, answers) + 14
    closing = "Then: settings, each with its reason, in plan.yaml, which `advise run` trains."
    canvas.text(MARGIN, y + 8, closing, SMALL, fill=SOFT)
    height = y + 8 + MARGIN
    paper = Canvas()
    paper.rect(0.5, 0.5, WIDTH - 1, height - 1, fill=PAPER, stroke=EDGE, radius=12)
    dark = " ".join(f'[fill="{light}"]{{fill:{dark}}}' for light, dark in DARK.items())
    dark += f' [stroke="{EDGE}"]{{stroke:{DARK[EDGE]}}}'
    canvas.parts[:0] = [
        f"<style>@media (prefers-color-scheme: dark) {{ {dark} }}</style>",
        *paper.parts,
    ]
    return canvas.document(WIDTH, height, title=TITLE, description=" ".join([said, *described]))


def draw_question(
    canvas: Canvas,
    top: float,
    place: int,
    question: Question,
    answers: list[tuple[str, Composition]],
) -> float:
    """One question with its answers in a card. Where it ends."""
    wide = WIDTH - 2 * MARGIN
    words_width = wide - ANSWER_WIDTH - 3 * PAD
    rows = []
    for words, composition in answers:
        said, meant = (
            wrapped(words, words_width, WORDS),
            wrapped(plain(composition), ANSWER_WIDTH, SMALL),
        )
        rows.append((said, composition, meant, max(len(said), 1 + len(meant)) * LINE + 8))
    height = PAD + 44 + sum(tall for *_, tall in rows) + 4
    canvas.rect(MARGIN, top, wide, height, fill=CARD_FILL, stroke=EDGE, radius=10)
    y = top + PAD + 12
    canvas.text(MARGIN + PAD, y, f"{place}. {question.ask}", QUESTION, fill=INK, bold=True)
    y += 20
    canvas.text(MARGIN + PAD, y, f"Looks at: {question.looks_at}", SMALL, fill=SOFT)
    y += 12
    for said, composition, meant, tall in rows:
        canvas.line([(MARGIN + PAD, y), (WIDTH - MARGIN - PAD, y)], stroke=EDGE, width=0.7)
        for place_of, line in enumerate(said):
            canvas.text(MARGIN + PAD, y + LINE * (place_of + 1), line, WORDS, fill=INK)
        x = WIDTH - MARGIN - PAD - ANSWER_WIDTH
        canvas.text(x - 20, y + LINE, "→", WORDS, fill=SOFT)
        canvas.text(x, y + LINE, str(composition), WORDS, fill=STRONG, bold=True)
        for place_of, line in enumerate(meant):
            canvas.text(x, y + LINE * (place_of + 2) - 1, line, SMALL, fill=SOFT)
        y += tall
    return top + height


def outcome(rules: Ruleset, line: Line) -> Composition:
    """What the rules answer with this changed."""
    stated = {name: value for name, value in {**BASE, **line.changes}.items() if value is not None}
    answers = {name: Answer(value=value, origin="flag") for name, value in stated.items()}
    nothing = Hardware(kind="unknown", origin="unknown")
    return open_case(
        situation_of(AnswerSet(known=answers), probed=nothing), rules
    ).decision.composition


def words_of(rules: Ruleset, line: Line) -> str:
    """What a line says, with a capital."""
    text = line.words or ", ".join(
        says(rules.facts[name], value) for name, value in line.changes.items()
    )
    return text[:1].upper() + text[1:]


def plain(composition: Composition) -> str:
    """A composition in a few words: 'learning from examples: LoRA'."""
    parts = [remedy(name).phrase for name in composition.remedies]
    if composition.chain:
        learns = ", then ".join(objective(name).short for name in composition.chain)
        how = update(composition.update or "lora").name
        if composition.quantization:
            how += " on a 4-bit model"
        each = ", one for each team" if composition.per_task else ""
        small = ", a small model" if composition.encoder else ""
        parts.append(f"{learns}: {inside_sentence(how)}{each}{small}")
    text = "; ".join(parts)
    return text[:1].upper() + text[1:]


def number(value: int) -> str:
    """'5,000'."""
    return f"{value:,}"
