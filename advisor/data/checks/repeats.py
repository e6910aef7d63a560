"""Rows that say nearly the same: by a normalised text among all rows, by shared word sequences in a
sample.

Two rows are near-duplicates where at least four fifths of their three-word sequences are the same
(Jaccard; Broder 1997, "On the resemblance and containment of documents"). The smallest hashes of
each row stand for it; rows that share one of the four smallest are compared.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass, field

SAMPLED_ROWS = 5_000
WORDS = 3
KEPT_HASHES = 64
# two rows alike to four fifths share none of their four smallest hashes with a chance below 1 %
KEYS = 4
ALIKE = 0.8
# rows with one hash in common beyond which no more are compared: a phrase of the template, not of
# the row
CROWDED = 40
LOOKED_AT_BYTES = 20_000

_PUNCTUATION = {code: " " for code in range(128) if not chr(code).isalnum()}
_ASCII = bytes(
    ord(chr(code).lower()) if chr(code).isalnum() else 32 for code in range(128)
) + bytes(range(128, 256))


def normalise(text: str) -> bytes:
    """Words in lower case without punctuation: what stays the same when a text is only typed
    differently.
    """
    if text.isascii():  # twice as fast as bytes
        return b" ".join(text.encode().translate(_ASCII).split())
    return " ".join(text.lower().translate(_PUNCTUATION).split()).encode("utf-8", "surrogatepass")


def sketch(text: bytes) -> tuple[int, ...]:
    """The smallest hashes of a normalised text's word sequences, ascending."""
    words = text[:LOOKED_AT_BYTES].split()
    if len(words) < WORDS:
        return ()
    crc32 = zlib.crc32
    hashes = {
        crc32(b"%b %b %b" % three) for three in zip(words, words[1:], words[2:], strict=False)
    }
    return tuple(sorted(hashes)[:KEPT_HASHES])


def resemblance(left: tuple[int, ...], right: tuple[int, ...]) -> float:
    """Share of word sequences two rows have in common, estimated from the smallest hashes of both
    together.
    """
    ours, theirs = set(left), set(right)
    if max(len(left), len(right)) < KEPT_HASHES:  # nothing was left out: exact
        common = len(ours & theirs)
        return common / (len(ours) + len(theirs) - common) if common else 0.0
    smallest = sorted(ours | theirs)[:KEPT_HASHES]
    both = ours & theirs
    return sum(value in both for value in smallest) / len(smallest)


@dataclass(slots=True)
class Sample:
    """A random sample of rows, the same every time, each as its smallest hashes."""

    rows: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)
    seen: int = 0
    _state: int = 2

    def offer(self, row: int, text: bytes) -> None:
        """Takes the row, with its normalised text, into the sample or not."""
        self.seen += 1
        if len(self.rows) < SAMPLED_ROWS:
            self.rows.append((row, sketch(text)))
            return
        self._state = (self._state * 6364136223846793005 + 1442695040888963407) & 0xFFFFFFFFFFFFFFFF
        place = (self._state >> 24) % self.seen
        if place < SAMPLED_ROWS:
            self.rows[place] = (row, sketch(text))

    def alike(self) -> list[tuple[int, int]]:
        """(row, the earlier row it resembles), each later row once."""
        places: dict[int, list[int]] = {}
        pairs: list[tuple[int, int]] = []
        ordered = sorted(self.rows)
        for index, (row, hashes) in enumerate(ordered):
            found: int | None = None
            compared: set[int] = set()
            for key in hashes[:KEYS]:
                others = places.setdefault(key, [])
                for other in others:
                    if found is None and other not in compared:
                        compared.add(other)
                        size = len(ordered[other][1])
                        # Rows of very different length cannot be alike: no need to look.
                        if (
                            ALIKE * size <= len(hashes)
                            and ALIKE * len(hashes) <= size
                            and resemblance(ordered[other][1], hashes) >= ALIKE
                        ):
                            found = other
                if len(others) < CROWDED:
                    others.append(index)
            if found is not None:
                pairs.append((row, ordered[found][0]))
        return pairs
