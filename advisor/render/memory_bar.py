"""Memory as a stacked bar against what the device has: HTML and CSS alone, every part named and
numbered in text, so that nothing is told by colour.
"""

from __future__ import annotations

from advisor.advice.types import Advice
from advisor.ground.units import format_gib
from advisor.render.answer.needs import memory_line, shown_terms
from advisor.render.markup import text

STYLE = """
.memory { margin: 1rem 0 .5rem; }
.memory .bar { display: flex; position: relative; height: 2rem; border: 1px solid var(--quiet);
  border-radius: 4px; overflow: hidden; background: var(--paper); }
.memory .bar span { border-right: 2px solid var(--paper); color: #fff; font-size: .8rem;
  line-height: 2rem; padding: 0; text-align: center; overflow: hidden; background: #0b6e4f;
  min-width: 2px; }
.memory .bar span:nth-child(4n+2) { background: #2f5d9b; }
.memory .bar span:nth-child(4n+3) { background: #7a4a8c; }
.memory .bar span:nth-child(4n+4) { background: #6b5b1e; }
.memory .bar .limit { position: absolute; top: 0; bottom: 0; width: 0; padding: 0; min-width: 0;
  border: 0; border-left: 3px dashed var(--ink); background: none; }
.memory .band { position: relative; height: .6rem; margin-top: .2rem; }
.memory .band i { position: absolute; top: .15rem; height: .3rem; border: 1px solid var(--ink);
  border-top: 0; }
.memory ol { display: flex; flex-wrap: wrap; gap: .1rem 1.2rem; padding-left: 0; margin: .3rem 0;
  list-style: none; font-size: .9rem; }
.memory li { margin: 0; }
.memory b { font-weight: 600; }
"""
LABELLED = 0.03  # of the bar: a part with room for its number


def memory_bar(advice: Advice) -> list[str]:
    """The bar with its legend as lines of HTML; nothing where memory is not known."""
    estimate = advice.recommendation.estimate
    memory, limit = estimate.memory, estimate.limit_bytes
    if memory is None or not advice.recommendation.composition.chain:
        return []
    need = memory.need_bytes
    whole = max(limit or 0, memory.need_high_bytes, need)
    terms = [(name, size) for name, size in shown_terms(memory.needed) if size > 0]
    if len(terms) < len(shown_terms(memory.needed)):  # what is given back has no place in a bar
        terms = [(memory.needed.name, float(need))]
    parts, legend = [], []
    for number, (name, size) in enumerate(terms, 1):
        share = size / whole
        inside = str(number) if share >= LABELLED else ""
        parts.append(f'<span style="width:{share:.2%}">{inside}</span>')
        legend.append(f"<li><b>{number}</b> {text(name)} {format_gib(size)}</li>")
    if limit is not None and limit < whole:
        parts.append(f'<span class="limit" style="left:{limit / whole:.2%}"></span>')
        legend.append(f"<li><b>dashed line</b> all there is: {format_gib(limit)}</li>")
    elif limit is not None:
        legend.append(f"<li><b>empty</b> free {format_gib(limit - need)}</li>")
    low, high = memory.need_low_bytes, memory.need_high_bytes
    legend.append(
        f"<li><b>bracket</b> the estimate's band, {format_gib(low)} to {format_gib(high)}</li>"
    )
    label = text(f"Memory: {memory_line(advice)}")
    return [
        '<div class="memory">',
        f'<div class="bar" role="img" aria-label="{label}">{"".join(parts)}</div>',
        '<div class="band" aria-hidden="true">'
        f'<i style="left:{low / whole:.2%};width:{(high - low) / whole:.2%}"></i></div>',
        f"<ol>{''.join(legend)}</ol>",
        "</div>",
    ]
