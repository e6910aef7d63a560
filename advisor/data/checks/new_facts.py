"""What answers hold that their requests do not: names and numbers. Rows full of them teach facts,
and a model learns those badly from rows; where requests hold them, a search brought them.

Three numbers, of the first rows: the share of answers with such a name or number, how many
different requests share an answer, and the share of an answer's words that its request holds.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import Any

from advisor.data.checks import RowCheck, SeenRow, Subject
from advisor.data.checks.answers import FEW, LOOKED_AT_CHARS
from advisor.data.example import parts_of

LOOKED_AT = 300  # rows: about ten milliseconds
REQUEST_CHARS = 20_000  # of a request, which may hold passages
PASSAGE_CHARS = 300  # a shorter request holds no passage, only words that its answer takes up
MOST_WORDS = 40  # of an answer that are looked for
# A name or number that so many answers share is their form, such as a signature.
FORM_SHARE = 0.1
# Where more of an answer's words are written so within sentences, all nouns are, as in German:
# numbers alone count there.
NOUNS_SHARE = 0.2
_NUMBER = re.compile(r"\d[\d.,:/%-]*")
# A word that is written large without beginning a sentence, a line, a list or a quotation.
_NOUN = re.compile(r"(?<=[\w,;)] )[A-Z][a-zà-ÿ]+")
_NAME = re.compile(r"(?<=[\w,;)] )(?:[A-Z][\w'’-]*[a-z]\w*|[A-Z][A-Z\d]+\w*)")
_BULLET = re.compile(r"^\s*(?:\d+[.)]|[-*•#]+)\s+", re.MULTILINE)
_WORD = re.compile(r"[^\W\d_]{4,}|\d+")


class NewFacts(RowCheck):
    """Names, numbers and words of answers against those of their requests."""

    place = 81

    def __init__(self, about: Subject) -> None:
        super().__init__(about)
        self.new: list[frozenset[str]] = []  # names of an answer that its request lacks
        self.new_numbers: list[frozenset[str]] = []
        self.requests: set[int] = set()
        self.answers: set[int] = set()
        self.words, self.nouns, self.held = 0, 0, 0.0

    def see(self, row: SeenRow) -> None:
        if self.about.kind != "paired" or row.example.label is not None:
            return
        asked, answers = parts_of(row.example)
        if len(self.new) >= LOOKED_AT or not answers or not answers[0][0].strip():
            return
        request = "\n".join(asked)[:REQUEST_CHARS].casefold()
        answer = _BULLET.sub("", answers[0][0][:LOOKED_AT_CHARS])
        names, numbers = (
            {one.group().strip(".,:-") for one in pattern.finditer(answer)}
            for pattern in (_NAME, _NUMBER)
        )
        self.new.append(frozenset(one for one in names if one.casefold() not in request))
        self.new_numbers.append(frozenset(one for one in numbers if one not in request))
        self.nouns += len(_NOUN.findall(answer))
        self.words += answer.count(" ") + 1
        if len(request) >= PASSAGE_CHARS:
            self._read(request, answer)
        self.requests.add(hash(request))
        self.answers.add(hash(answer))

    def _read(self, request: str, answer: str) -> None:
        words = list(dict.fromkeys(_WORD.findall(answer.casefold())))[:MOST_WORDS]
        self.held += sum(word in request for word in words) / max(1, len(words))

    def measures(self) -> dict[str, Any]:
        count = len(self.new)
        if count < FEW:
            return {}
        counts_names = self.nouns <= NOUNS_SHARE * self.words
        rows = [
            names | numbers if counts_names else numbers
            for names, numbers in zip(self.new, self.new_numbers, strict=True)
        ]
        often = Counter(one for row in rows for one in row)
        form = {one for one, times in often.items() if times >= max(3, FORM_SHARE * count)}
        return {
            "new_facts": {
                "looked_at": count,
                "answers_with_new_facts": round(sum(bool(row - form) for row in rows) / count, 2),
                "requests_per_answer": round(len(self.requests) / len(self.answers), 2),
                "answer_words_in_request": round(self.held / count, 2),
            }
        }
