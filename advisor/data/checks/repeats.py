"""Rows that say the same or nearly the same: by a normalised text among all rows, by shared word
sequences in a sample.

Two rows are near-duplicates where at least four fifths of their three-word sequences are the same
(Jaccard; Broder 1997, "On the resemblance and containment of documents"). The smallest hashes of
each row stand for it; rows that share one of the four smallest are compared.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar

from advisor.data.checks import RandomSample, RowCheck, SeenRow, Subject, finding, findings_of
from advisor.data.example import said
from advisor.data.examples import Tally
from advisor.ground.types import DataFinding

# different rows kept to find repeated ones: about 250 MB of hashes, so that memory stays flat
COMPARED_ROWS = 1_500_000
SAMPLED_ROWS = 5_000
KEPT_TOGETHER = 100_000  # rows of a stage up to which those that are alike stay on one side
SAME, NEARLY, CONFLICT = "duplicate-rows", "near-duplicate-rows", "same-request-other-answer"
HOW = {SAME: "row word for word", NEARLY: "row but for capitals, spaces or punctuation"}
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
    """Words in lower case without punctuation: what a text typed differently keeps."""
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


def resemblance(left: Sequence[int], right: Sequence[int]) -> float:
    """Share of word sequences that two rows have in common, by the smallest hashes of both."""
    ours, theirs = set(left), set(right)
    both, either = ours & theirs, ours | theirs
    if max(len(left), len(right)) < KEPT_HASHES:  # nothing was left out: exact
        return len(both) / max(1, len(either))
    smallest = sorted(either)[:KEPT_HASHES]
    return sum(value in both for value in smallest) / len(smallest)


def alike(sampled: Iterable[tuple[int, Sequence[int]]]) -> list[tuple[int, int]]:
    """(row, the earlier row it resembles) of rows with their hashes, each later row once."""
    places: dict[int, list[int]] = {}
    pairs: list[tuple[int, int]] = []
    ordered = sorted(sampled)
    for index, (row, hashes) in enumerate(ordered):
        ours, keys = set(hashes), [places.setdefault(key, []) for key in hashes[:KEYS]]
        for other in dict.fromkeys(other for others in keys for other in others):
            earlier, theirs = ordered[other]
            # Rows of very different length cannot be alike: no need to look.
            if (
                ALIKE * len(theirs) <= len(hashes)
                and ALIKE * len(hashes) <= len(theirs)
                # Cheap, and so for all that are alike.
                and ALIKE * max(len(hashes), len(theirs)) <= len(ours.intersection(theirs))
                and resemblance(theirs, hashes) >= ALIKE
            ):
                pairs.append((row, earlier))
                break
        for others in keys:
            if len(others) < CROWDED:
                others.append(index)
    return pairs


def keys_of(row: SeenRow, kind: str) -> tuple[int, int | None]:
    """A hash of all that a row says, and one of what it asks if that has an answer."""
    example = row.example
    if kind == "raw_text":
        return hash(row.text), None
    parts = tuple(message.content for message in example.messages)
    if kind == "preference":
        ends = (tuple(map(said, example.chosen)), tuple(map(said, example.rejected)))
        return hash((parts, ends)), None
    if kind == "prompts_with_verifier":
        return hash((parts, example.answer)), hash(parts)
    key = hash((parts, example.good))
    if example.messages[-1].extra:
        key = hash((key, repr(example.messages[-1].extra)))
    return key, hash(parts[:-1])


class Repeats(RowCheck):
    """Hashes of the rows, since a million rows must not cost a million texts."""

    place = 10
    says: ClassVar = {
        CONFLICT: ("note", "{rows} asking what an earlier row asks, with another answer")
    }

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.rows: set[int] = set()
        self.plain: set[int] = set()  # of those, normalised
        self.asked: set[int] = set()
        self.compared_all = True
        self.sample: RandomSample[tuple[int, tuple[int, ...]]] = RandomSample(SAMPLED_ROWS, state=2)

    def see(self, row: SeenRow) -> None:
        key, asked = keys_of(row, self.about.kind)
        example = row.example
        if key in self.rows:
            self.tallies[SAME].add(example.row)
            return
        if len(self.rows) >= COMPARED_ROWS:
            self.compared_all = False
            return
        self.rows.add(key)
        plain = hash((row.plain, example.good, example.answer))
        if plain in self.plain:
            self.tallies[NEARLY].add(example.row)
            return
        self.plain.add(plain)
        if self.about.thorough:
            self.sample.offer(lambda: (example.row, sketch(row.plain)))
        if asked is not None and self.about.kind == "paired":
            if asked in self.asked:
                self.tallies[CONFLICT].add(example.row)
            self.asked.add(asked)

    def findings(self) -> Iterator[DataFinding]:
        for name, how in HOW.items():
            tally = self.tallies[name]
            severity = "warning" if tally.count > 0.01 * self.about.rows else "note"
            text = f"{tally.in_words} repeating an earlier {how}"
            yield from findings_of(tally, name, severity, text)
        yield from self._similar()
        if not self.compared_all:
            text = (
                f"rows were compared with the first {COMPARED_ROWS:,} different ones only, so that"
                " memory stays flat"
            )
            yield finding("not-all-rows-compared", "note", text, COMPARED_ROWS)
        yield from super().findings()

    def _similar(self) -> Iterator[DataFinding]:
        pairs = alike(self.sample.kept)
        if not pairs:
            return
        similar = Tally(len(pairs), [row for row, _ in pairs])
        looked = len(self.sample.kept)
        where = "" if looked == self.sample.seen else f" of a random sample of {looked:,}"
        few = ", ".join(f"row {row} is like row {other}" for row, other in pairs[:3])
        text = (
            f"{similar.in_words}{where} with four fifths of the wording of an earlier row"
            f" ({few}{', ...' if len(pairs) > 3 else ''})"
        )
        if self.about.rows <= KEPT_TOGETHER:
            text += "; a run holds such rows out together, unless most are alike"
        severity = "warning" if len(pairs) > 0.05 * looked else "note"
        yield finding("similar-rows", severity, text, similar)
