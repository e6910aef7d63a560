"""Built-in rewards that say what is bad: an answer that grows too long, and one that repeats
itself. Each is 0 for a good answer and -1 for the worst.
"""

from __future__ import annotations


def overlong_penalty(tokens: int, *, limit: int, overlong: int) -> float:
    """0 for an answer that leaves `overlong` tokens of the limit unused, falling to -1 at it.

    Args:
        tokens: Of the answer.
        limit: The longest answer, at which it is cut (L_max).
        overlong: The last tokens before it, over which the penalty grows (L_cache).

    Source: soft overlong punishment, DAPO, arXiv:2503.14476, equation 13.
    """
    return -min(1.0, max(0, tokens - (limit - overlong)) / overlong)


def repetition_penalty(text: str, *, ngram: int) -> float:
    """Minus the share of word sequences that occurred before in the text; case does not count.

    A text of fewer words than a sequence has repeats nothing. Without spaces between its words, as
    Chinese is written, a text is one word.

    Args:
        text: The answer.
        ngram: Words in a sequence.

    Source: Demystifying Long Chain-of-Thought Reasoning in LLMs, arXiv:2502.03373, appendix C.2, as
    in open-r1.
    """
    words = text.casefold().split()
    sequences = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return len(set(sequences)) / len(sequences) - 1.0 if sequences else 0.0
