"""Rows are held out without a tokenizer as the trainers hold out their tokenised rows."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from advisor.data.same_rows import held_out
from trainers.prepare import split_rows


@dataclass(frozen=True)
class Row:
    number: int
    key: str
    text: str
    good: bool


ROWS = st.lists(
    st.tuples(
        st.sampled_from(["", "a", "b", "c", "d", "e", "f"]),
        st.text("xyz", max_size=2),
        st.booleans(),
    ),
    min_size=1,
    max_size=40,
)


@given(ROWS, st.sampled_from([0.0, 0.02, 0.1, 0.3, 0.6]), st.integers(0, 5), st.booleans())
def test_the_same_rows_are_held_out_as_by_the_trainers(drawn, share, seed, by_feedback):
    """Whatever rows share questions or texts, both splits agree."""
    rows = [Row(place, key, text, good) for place, (key, text, good) in enumerate(drawn)]
    _, held = split_rows(
        rows, share=share, seed=seed, stratum=(lambda row: row.good) if by_feedback else None
    )
    found = held_out(
        [row.key for row in rows],
        [row.text for row in rows],
        share=share,
        seed=seed,
        strata=[row.good for row in rows] if by_feedback else None,
    )
    assert [row.number for row in held] == [place for place, one in enumerate(found) if one]
