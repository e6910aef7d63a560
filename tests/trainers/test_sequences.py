"""Rows and groups of rows as sequences, and the dataset that trainers read them through."""

import pytest

from trainers.rows import Row, dataset_columns
from trainers.rows.preference import Feedback, feedback_columns
from trainers.rows.row import ids_of
from trainers.rows.sequences import Groups, Picked, flattened, lengths, values_of


def row(number: int, size: int) -> Row:
    ids = ids_of(range(number, number + size))
    return Row(number, ids, ids, "", "", "", f"key {number}", f"text {number}")


ROWS = tuple(row(number, 2 + number % 3) for number in range(1, 8))


def test_picked_rows_are_those_of_all_parts_in_the_order_asked_for():
    """Places run through all parts, one after the other; lengths come in the same order."""
    picked = Picked([ROWS[:3], ROWS[3:]], [6, 0, 3])
    assert list(picked) == [ROWS[6], ROWS[0], ROWS[3]] == [picked[place] for place in range(3)]
    assert lengths(picked).tolist() == [len(row.input_ids) for row in picked]
    assert list(picked[1:]) == [ROWS[0], ROWS[3]]
    assert list(values_of(picked, "number")) == [7, 1, 4]


def test_single_rows_are_groups_of_one():
    """Groups of one row have its length, and flattened they are the rows themselves."""
    groups = Groups(ROWS)
    assert groups[2] == (ROWS[2],)
    assert list(groups) == [(one,) for one in ROWS]
    assert lengths(groups).tolist() == lengths(ROWS).tolist()
    assert flattened(groups) is ROWS
    assert flattened([ROWS[:2], ROWS[2:3]]) == list(ROWS[:3])


def test_the_dataset_gives_what_a_copy_of_all_columns_would_give():
    """By place, by places, one by one, with columns removed and rows changed."""
    pytest.importorskip("datasets")
    from datasets import Dataset

    from trainers.rows.sequences import copied_dataset, rows_dataset

    def columns(groups):
        return dataset_columns(groups, lengths=True)

    expected = Dataset.from_dict(columns(Groups(ROWS)))
    for made in (rows_dataset(Groups(ROWS), columns), copied_dataset(Groups(ROWS), columns)):
        assert made.column_names == expected.column_names
        assert len(made) == len(ROWS)
        assert made[3] == expected[3]
        assert made[2:5] == expected[2:5]
        assert made.__getitems__([5, 1]) == expected.__getitems__([5, 1])
        assert list(made) == list(expected)
        assert made.remove_columns(["labels"])[0] == expected.remove_columns(["labels"])[0]
        assert list(made["labels"]) == list(expected["labels"])

        assert list(made.select([4, 0])) == list(expected.select([4, 0]))


def test_each_answer_has_the_one_before_it_in_its_batch():
    """The batches that a trainer fetches give the prompt the answer of the row before it."""
    from trainers.rows.sequences import rows_dataset

    rows = [Feedback(number, ids_of([1]), ids_of([number]), True, "", "") for number in range(9)]
    made = rows_dataset(rows, feedback_columns)
    batch = made.__getitems__([4, 5, 6, 7])
    assert [one["KL_completion_ids"] for one in batch] == [[7], [4], [5], [6]]


@pytest.mark.train
def test_rows_of_a_trainer_are_not_filtered():
    """Its data set's `map` does nothing: a filter, which goes through it, is refused."""
    from trainers.rows.sequences import rows_dataset

    made = rows_dataset([1, 2, 3], lambda rows: {"number": list(rows)})
    assert made.map(lambda row: row) is made
    assert made[:]["number"] == [1, 2, 3]
    with pytest.raises(TypeError, match="chosen already"):
        made.filter(lambda row: False)
