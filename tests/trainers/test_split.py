"""The hold-out split and the length limit, for whatever rows."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import examples
from tests.trainers.fitting import fit_rows, split_rows
from trainers.rows import IGNORED, Row
from trainers.rows.row import cut_row, normalise_text, split_text

pytestmark = pytest.mark.light

QUICK = examples(3, derandomize=True)
QUESTION = st.sampled_from(["a", "A ", "b", "c", "d  d", "D d", "e", "f", "\uff41", ""])


def rows_from(pairs) -> list[Row]:
    return [
        Row(
            number=place,
            input_ids=[1, 2],
            labels=[1, 2],
            prompt="p",
            shown="",
            expected="",
            key=normalise_text(asked),
            text=normalise_text(asked + " " + said),
        )
        for place, (asked, said) in enumerate(pairs, 1)
    ]


@QUICK
@given(
    pairs=st.lists(st.tuples(QUESTION, QUESTION), min_size=1, max_size=40),
    share=st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.85]),
    seed=st.integers(0, 5),
)
def test_what_says_the_same_is_never_on_both_sides(pairs, share, seed):
    """Rows equal but for case, space and ways to write a letter stay together; no row is lost; some
    rows are always trained on.
    """
    rows = rows_from(pairs)
    train, held = split_rows(rows, share=share, seed=seed)
    assert sorted(row.number for row in (*train, *held)) == [row.number for row in rows]
    assert not {row.text for row in train} & {row.text for row in held}
    assert train
    if 2 * len({row.key for row in rows}) >= len(rows):
        assert not ({row.key for row in train} & {row.key for row in held}) - {""}
    assert len(held) <= max(1, round(share * len(rows)))


@QUICK
@given(
    pairs=st.lists(st.tuples(QUESTION, QUESTION), min_size=1, max_size=30),
    seed=st.integers(0, 5),
    random=st.randoms(use_true_random=False),
)
def test_the_split_follows_from_content_and_seed(pairs, seed, random):
    """Another order of the same rows holds out the same texts."""
    rows = rows_from(pairs)
    shuffled = list(rows)
    random.shuffle(shuffled)
    assert split_rows(rows, share=0.3, seed=seed) == split_rows(shuffled, share=0.3, seed=seed)


@QUICK
@given(length=st.integers(2, 200), seq_len=st.integers(2, 40))
def test_a_parted_text_is_learned_whole_and_once(length, seq_len):
    """Every token of a text but its first is learned exactly once, each piece has something to
    predict, and stands in its context.
    """
    ids = list(range(1000, 1000 + length))
    row = Row(
        number=1,
        input_ids=ids,
        labels=ids,
        prompt="",
        shown="",
        expected="",
        key="k",
        text="t",
        document=True,
    )
    found = list(split_text(row, seq_len))
    assert [label for piece in found for label in piece.labels[1:] if label != IGNORED] == ids[1:]
    assert all(2 <= piece.tokens <= seq_len and piece.learned >= 1 for piece in found)
    assert all(
        list(piece.input_ids) == list(range(piece.input_ids[0], piece.input_ids[0] + piece.tokens))
        for piece in found
    )


@QUICK
@given(
    lengths=st.lists(st.tuples(st.integers(2, 30), st.integers(1, 29)), min_size=1, max_size=60),
    seq_len=st.integers(8, 20),
    truncation=st.sampled_from(["drop", "truncate"]),
)
def test_kept_cut_and_dropped_rows_add_up(lengths, seq_len, truncation):
    """Every row is kept, cut or counted as dropped; what is kept fits and has something to
    learn.
    """
    rows = []
    for place, (length, answer) in enumerate(lengths, 1):
        ids = list(range(length))
        labels = [IGNORED if at < max(1, length - answer) else at for at in ids]
        rows.append(
            Row(
                number=place,
                input_ids=ids,
                labels=labels,
                prompt="p",
                shown="",
                expected="",
                key=str(place),
                text=str(place),
            )
        )
    rows.append(replace(rows[0], number=0, input_ids=[1, 2], labels=[IGNORED, 2]))
    fit = fit_rows(rows, seq_len=seq_len, truncation=truncation, cut=cut_row)
    assert len(fit.rows) + fit.dropped == len(rows)
    assert all(row.tokens <= seq_len and row.learned for row in fit.rows)
    assert fit.truncated == sum(row.tokens > seq_len for row in rows) - fit.dropped
    assert bool(fit.dropped) == any("left out" in note for note in fit.notes)
    assert bool(fit.truncated) == any("were cut" in note for note in fit.notes)
