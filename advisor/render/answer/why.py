"""Why this method: the reasons, what the guide says, what stands in the way if nothing fits."""

from __future__ import annotations

from collections.abc import Iterator

from advisor.advice.certainty import certainty_lines
from advisor.advice.types import Advice, Candidate
from advisor.ground.units import format_gib
from advisor.render.answer.reasons import reason_origin, reason_text
from advisor.render.blocks import Block, Item, Items, Section, Text
from advisor.render.words import is_chosen, memory_words, sentence


def stuck_section(advice: Advice) -> Section:
    """What comes nearest to fitting, by how much it fails, and which facts are to blame."""
    stuck = advice.nothing_fits
    if stuck is None:
        return Section(title="", blocks=())
    blocks: list[Block] = [
        Text(
            text=(
                f"Nothing fits. The nearest is {stuck.nearest.composition}:"
                f" {limit_words(stuck.nearest)}."
            ),
            tone="warning",
        )
    ]
    if stuck.blame:
        blocks.append(Text(text="To blame, together:" if len(stuck.blame) > 1 else "To blame:"))
        blocks.append(Items(items=tuple(Item(text=reason.text) for reason in stuck.blame)))
    return Section(title="What stands in the way", blocks=tuple(blocks))


def limit_words(candidate: Candidate) -> str:
    needs, limit = memory_words(candidate), candidate.estimate.limit_bytes
    if needs and limit is not None and not candidate.estimate.is_likely:
        over = candidate.estimate.memory.need_bytes - limit if candidate.estimate.memory else 0
        return f"it needs {needs}, {format_gib(over)} more than the {format_gib(limit)} there are"
    return (
        reason_text(candidate.because[0]).rstrip(".")
        if candidate.because
        else "it needs more memory than there is"
    )


def why(advice: Advice) -> Section:
    items = tuple(
        Item(text=sentence(reason_text(reason)), detail=reason_origin(reason))
        for reason in advice.recommendation.because
    )
    blocks: list[Block] = [Items(items=items)] if items else []
    cited = {reason.rule for reason in advice.recommendation.because}
    others = [rule for rule in advice.decided_by if rule not in cited]
    if others and not is_chosen(advice):
        blocks.append(
            Text(
                text=f"{'Also decided' if items else 'Decided'} by: {', '.join(others)}",
                tone="quiet",
            )
        )
    if not is_chosen(advice):  # how sure what is recommended is
        blocks += [Text(text=line) for line in certainty_lines(advice.certainty)]
    blocks += [Text(text=line) for line in _guide(advice)]
    about = "Against" if is_chosen(advice) else "Why"
    title = f"{about} {advice.recommendation.composition}" if advice.fits else "Why"
    return Section(title=title, blocks=tuple(blocks))


def _guide(advice: Advice) -> Iterator[str]:
    """What the guide alone says of the same facts, and in which row."""
    guide = advice.guide
    if guide is None:
        return
    if str(guide.composition) == str(advice.recommendation.composition):
        yield f"The guide says the same, in its row “{guide.row}”."
    else:
        yield f"The guide alone says {guide.composition}, in its row “{guide.row}”."
