"""Rows: what of them is learned, their length, the hold-out split, how they are kept and read."""

import random
from collections import Counter
from copy import deepcopy
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError
from tests.conftest import examples
from tests.trainers.fitting import (
    fit_rows,
    in_memory,
    prepare_stage_rows,
    sequence,
    split_rows,
    tokenise,
)
from trainers.rows import IGNORED, Prepared, Row, Templater, dataset_columns, pack, stage_rows
from trainers.rows.preference import Feedback, feedback_columns
from trainers.rows.row import cut_row, ids_of, normalise_text, split_text
from trainers.rows.sequences import (
    Groups,
    Picked,
    copied_dataset,
    flattened,
    lengths,
    rows_dataset,
    values_of,
)
from trainers.rows.stage_rows import prepare_rows
from trainers.start.loading import load_tokenizer


def chat(*turns: str, row: int = 1, weights: tuple[float, ...] = (1.0,) * 10) -> Example:
    said = zip(("user", "assistant") * 5, turns, weights, strict=False)
    return Example(row=row, messages=tuple(Message(*turn) for turn in said))


def learned_text(tokenizer, row: Row) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


@settings(max_examples=25)  # each renders a template several times
@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=5))
def test_exactly_the_answers_with_a_weight_are_learned(tiny_tokenizer, answers):
    """Answers of weight 1 are learned, each with its end, and the whole conversation is read."""
    turns = [turn for at in range(len(answers)) for turn in (f"Ask {at}?", f"Say {at}.")]
    weights = tuple(weight for learn in answers for weight in (1, learn))
    wanted = "".join(f"Say {at}.<|im_end|>" for at, learn in enumerate(answers) if learn)
    if not wanted:
        with pytest.raises(InputError, match="no token to learn"):
            tokenise([chat(*turns, weights=weights)], Templater(tiny_tokenizer))
        return
    (row,) = tokenise([chat(*turns, weights=weights)], Templater(tiny_tokenizer))
    assert learned_text(tiny_tokenizer, row) == wanted
    assert all(turn in tiny_tokenizer.decode(row.input_ids) for turn in turns)


def test_a_row_without_a_token_to_learn_is_an_error_that_names_it(tiny_tokenizer):
    """A row whose answers all have weight 0 stops the run; all faulty rows are named together."""
    silent = chat("Two?", "Second.", row=7, weights=(1, 0))
    with pytest.raises(InputError, match=r"row 7: no token to learn[\s\S]*row 9: neither"):
        tokenise([chat("One?", "First."), silent, Example(row=9)], Templater(tiny_tokenizer))


def test_a_template_without_end_of_turn_gets_the_end_token(tiny_tokenizer):
    """The end token is added and counted, so that the model learns to stop."""
    bare = deepcopy(tiny_tokenizer)
    bare.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if"
        " add_generation_prompt %}assistant: {% endif %}"
    )
    templater = Templater(bare)
    (row,) = tokenise([chat("One?", "First.")], templater)
    assert row.labels[-1] == bare.eos_token_id
    assert learned_text(bare, row).startswith("First.")
    assert any("which the chat template leaves out" in note for note in templater.notes)


@pytest.mark.parametrize(
    ("example", "read", "learned", "keys"),
    [
        (chat("One?", "First."), "User: One?\n\nAssistant: First.<|im_end|>\n\n",
         " First.<|im_end|>", {}),
        (structs.replace(chat("Tea:", " green"), plain=True), "Tea: green<|im_end|>",
         " green<|im_end|>", {}),
        (Example(row=1, text="Is it broken?", label="complaint"),
         "User: Is it broken?\n\nAssistant: complaint<|im_end|>\n\n", " complaint<|im_end|>", {}),
        (chat("One?", "First."), "User: One?\n\nAssistant: First.<|im_end|>\n\n",
         "User: One?\n\nAssistant: First.<|im_end|>\n\n", {"learn_all": True}),
    ],
    ids=["chat", "prompt and completion", "label", "loss on all"],
)  # fmt: skip
def test_without_a_template_the_stated_plain_one_is_used_and_kept(
    example, read, learned, keys, tiny_tokenizer
):
    """Nothing is put around a plain prompt and its completion, which is learned with its end."""
    base = deepcopy(tiny_tokenizer)
    base.chat_template = None
    templater = Templater(base, **keys)
    (row,) = tokenise([example], templater)
    assert base.decode(row.input_ids) == read
    assert learned_text(base, row) == learned
    assert bool(base.chat_template) is not example.plain
    assert example.plain or "plain" in templater.template_source


def test_raw_text_is_learned_whole_and_cut_into_pieces(tiny_tokenizer):
    """Every token but the very first is learned exactly once."""
    rows = tokenise([Example(row=1, text="The shop sells tea. " * 40)], Templater(tiny_tokenizer))
    fit = fit_rows(rows, seq_len=32, truncation="stop")
    assert fit.split == 1
    assert [label for row in fit.rows for label in row.labels[1:]] == list(rows[0].input_ids)[1:]
    assert all(2 <= row.tokens <= 32 for row in fit.rows)
    assert rows[0].input_ids[-1] == tiny_tokenizer.eos_token_id


def rows_of(*lengths: int) -> list[Row]:
    """Rows of given lengths whose last token is learned."""
    return [
        sequence(place, tuple(range(length)), (IGNORED,) * (length - 1) + (length - 1,))
        for place, length in enumerate(lengths, 1)
    ]


@pytest.mark.light
def test_a_few_long_rows_are_left_out_and_too_many_stop_the_run():
    """`truncation: stop` leaves out and counts up to 5 %; the error says how many and how long."""
    fit = fit_rows(rows_of(*[5] * 19, 30), seq_len=10, truncation="stop")
    assert (len(fit.rows), fit.dropped) == (19, 1)
    assert fit.notes == ["1 of 20 rows were left out: longer than seq_len 10 (row 20)"]
    for sizes, keys, said in (
        (
            [*[5] * 18, 20, 30],
            {"seq_len": 10, "truncation": "stop", "cut": cut_row},
            r"2 of 20 rows are longer than seq_len 10 .*the longest has 30",
        ),
        ([20, 30], {"seq_len": 8, "truncation": "drop"}, "no row fits into seq_len 8"),
        # To cut them would leave prompts alone, and losses of 0.0 or NaN.
        (
            [20, 30],
            {"seq_len": 8, "truncation": "truncate", "cut": cut_row},
            "no row fits into seq_len 8",
        ),
    ):
        with pytest.raises(InputError, match=said):
            fit_rows(rows_of(*sizes), **keys)


QUICK = examples(3, derandomize=True)


@pytest.mark.light
@QUICK
@given(length=st.integers(2, 200), seq_len=st.integers(2, 40))
def test_a_parted_text_is_learned_whole_and_once(length, seq_len):
    """Each piece has something to predict, and stands in its context."""
    ids = list(range(1000, 1000 + length))
    found = list(split_text(sequence(1, ids, document=True), seq_len))
    assert [label for piece in found for label in piece.labels[1:] if label != IGNORED] == ids[1:]
    assert all(2 <= piece.tokens <= seq_len and piece.learned >= 1 for piece in found)
    for piece in found:
        assert [token - piece.input_ids[0] for token in piece.input_ids] == [*range(piece.tokens)]


@pytest.mark.light
@QUICK
@given(
    lengths=st.lists(st.tuples(st.integers(2, 30), st.integers(1, 29)), min_size=1, max_size=60),
    seq_len=st.integers(8, 20),
    truncation=st.sampled_from(["drop", "truncate"]),
)
def test_kept_cut_and_dropped_rows_add_up(lengths, seq_len, truncation):
    """Every row is kept, cut or counted as dropped; what is kept fits and has a token to learn."""
    rows = [sequence(0, [1, 2], [IGNORED, 2])]
    for place, (length, answer) in enumerate(lengths, 1):
        ids = range(length)
        labels = [IGNORED if at < max(1, length - answer) else at for at in ids]
        rows.append(sequence(place, ids, labels))
    fit = fit_rows(rows, seq_len=seq_len, truncation=truncation, cut=cut_row)
    assert len(fit.rows) + fit.dropped == len(rows)
    assert all(row.tokens <= seq_len and row.learned for row in fit.rows)
    assert fit.truncated == sum(row.tokens > seq_len for row in rows) - fit.dropped
    assert bool(fit.dropped) == any("left out" in note for note in fit.notes)
    assert bool(fit.truncated) == any("were cut" in note for note in fit.notes)


@pytest.mark.light
def test_the_seed_changes_which_rows_are_held_out():
    """As many of them with each."""
    rows = rows_of(*[5] * 40)
    first, other = (split_rows(rows, share=0.25, seed=seed)[1] for seed in (3, 4))
    assert first != other
    assert len(first) == len(other) == 10
    assert split_rows(rows, share=0.0, seed=3)[1] == []


QUESTION = st.sampled_from(["a", "A ", "b", "c", "d  d", "D d", "e", "f", "\uff41", ""])
PAIRS = st.lists(st.tuples(QUESTION, QUESTION), min_size=1, max_size=40)


def rows_from(pairs) -> list[Row]:
    return [
        sequence(place, [1, 2], key=normalise_text(asked), text=normalise_text(f"{asked} {said}"))
        for place, (asked, said) in enumerate(pairs, 1)
    ]


@pytest.mark.light
@QUICK
@given(PAIRS, st.sampled_from([0.0, 0.05, 0.2, 0.5, 0.85]), st.integers(0, 5))
def test_what_says_the_same_is_never_on_both_sides(pairs, share, seed):
    """Rows equal but for case, space and ways to write a letter stay together; none is lost."""
    rows = rows_from(pairs)
    train, held = split_rows(rows, share=share, seed=seed)
    assert sorted(row.number for row in (*train, *held)) == [row.number for row in rows]
    assert not {row.text for row in train} & {row.text for row in held}
    assert train
    if 2 * len({row.key for row in rows}) >= len(rows):
        assert not ({row.key for row in train} & {row.key for row in held}) - {""}
    assert len(held) <= max(1, round(share * len(rows)))


@pytest.mark.light
@QUICK
@given(PAIRS, st.integers(0, 5), st.randoms(use_true_random=False))
def test_the_split_follows_from_content_and_seed(pairs, seed, draw):
    """Another order of the same rows holds out the same texts."""
    rows = rows_from(pairs)
    shuffled = draw.sample(rows, len(rows))
    assert split_rows(rows, share=0.3, seed=seed) == split_rows(shuffled, share=0.3, seed=seed)


@pytest.mark.light
def test_packing_never_predicts_the_first_token_of_a_row():
    """It would be from the row before."""
    table = dataset_columns(pack(rows_of(6, 5, 4, 3, 2, 10, 7), 10), lengths=True)
    for labels, sizes in zip(table["labels"], table["seq_lengths"], strict=True):
        assert len(labels) == sum(sizes)
        assert all(labels[sum(sizes[:place])] == IGNORED for place in range(len(sizes)))


def test_rows_are_prepared_once_and_come_back_the_same(make, monkeypatch):
    """A second call takes equal rows from the run folder, and does not read the data again."""
    job = make(seq_len=64)
    first = prepared(job)
    monkeypatch.setattr(stage_rows, "read_examples", lambda *_, **__: pytest.fail("prepared again"))
    assert prepared(job) == first
    assert first.digest


@pytest.mark.parametrize(
    "change",
    [
        {"seq_len": 60},
        {"holdout": 0.2},
        {"seed": 5},
        {"truncation": "drop"},
        {"loss_on": "all"},
        "data",
        "template",
        "mapping",
    ],
)
def test_anything_the_rows_depend_on_prepares_them_again(change, make, chats, tmp_path):
    """Another length, split, mask, content or chat template is another file; the old one goes."""
    data = tmp_path / "copy.jsonl"
    data.write_bytes(chats.read_bytes())
    job = make(seq_len=64, job_data=data)
    tokenizer = load_tokenizer(job)
    prepare_rows(job, tokenizer)
    (before,) = (job.run / "prepared").glob("*.json")
    if change == "data":
        data.write_bytes(chats.read_bytes().replace(b"kettle", b"teapot"))
    elif change == "template":
        tokenizer.chat_template += "{# another #}"
    elif change == "mapping":
        mapped = structs.replace(job.data, mapping={"messages": "messages"})
        job = replace(job, entry=structs.replace(job.entry, data=mapped))
    else:
        job = make(**{"seq_len": 64, "job_data": data, **change})
    prepare_rows(job, tokenizer)
    (after,) = (job.run / "prepared").glob("*.json")
    assert after.name != before.name


def prepared(job) -> Prepared:
    return in_memory(prepare_rows(job, load_tokenizer(job)))


@pytest.mark.parametrize("damage", ["cut", "bit", "checksum"])
def test_a_broken_file_is_prepared_again(damage, make):
    """A file that is cut short or has one changed bit is neither an error nor trained on."""
    job = make(seq_len=64)
    first = prepared(job)
    (file,) = (job.run / "prepared").glob("*-rows.arrow")
    whole = file.read_bytes()
    token = whole.index(ids_of(first.train[0].input_ids).tobytes())
    if damage == "checksum":
        file.with_name(file.name.replace("-rows.arrow", ".json")).unlink()
    else:
        bit = whole[:token] + bytes([whole[token] ^ 1]) + whole[token + 1 :]
        file.write_bytes({"cut": whole[:-200], "bit": bit}[damage])
    assert prepared(job) == first
    assert file.read_bytes() == whole
    assert prepared(job) == first


def test_the_plain_template_comes_back_with_the_rows(make):
    """Rows prepared before bring it too, so that it is saved with the result."""
    job = make(seq_len=64)
    tokenizers = [load_tokenizer(job) for _ in range(2)]
    for tokenizer in tokenizers:
        tokenizer.chat_template = None
        assert prepare_rows(job, tokenizer).template.startswith("plain")
        assert "Assistant:" in tokenizer.chat_template
    assert tokenizers[0].chat_template == tokenizers[1].chat_template


ROWS = tuple(sequence(n, ids_of(range(n, n + 2 + n % 3)), prompt="") for n in range(1, 8))


@pytest.mark.light
def test_picked_rows_are_those_of_all_parts_in_the_order_asked_for():
    """Places run through all parts; groups of one row have its length and flatten to the rows."""
    picked = Picked([ROWS[:3], ROWS[3:]], [6, 0, 3])
    assert list(picked) == [ROWS[6], ROWS[0], ROWS[3]] == [picked[place] for place in range(3)]
    assert lengths(picked).tolist() == [len(row.input_ids) for row in picked]
    assert list(picked[1:]) == [ROWS[0], ROWS[3]]
    assert list(values_of(picked, "number")) == [7, 1, 4]
    groups = Groups(ROWS)
    assert groups[2] == (ROWS[2],)
    assert list(groups) == [(one,) for one in ROWS]
    assert lengths(groups).tolist() == lengths(ROWS).tolist()
    assert flattened(groups) is ROWS
    assert flattened([ROWS[:2], ROWS[2:3]]) == list(ROWS[:3])


def test_the_dataset_gives_what_a_copy_of_all_columns_would_give():
    """By place, by places, one by one, with columns removed and rows changed."""
    from datasets import Dataset

    def columns(groups):
        return dataset_columns(groups, lengths=True)

    expected = Dataset.from_dict(columns(Groups(ROWS)))
    for made in (rows_dataset(Groups(ROWS), columns), copied_dataset(Groups(ROWS), columns)):
        for look in (
            lambda table: table.column_names,
            len,
            lambda table: table[3],
            lambda table: table[2:5],
            lambda table: table.__getitems__([5, 1]),
            list,
            lambda table: table.remove_columns(["labels"])[0],
            lambda table: list(table["labels"]),
            lambda table: list(table.select([4, 0])),
        ):
            assert look(made) == look(expected)


def test_each_answer_has_the_one_before_it_in_its_batch():
    """The batches that a trainer fetches give the prompt the answer of the row before it."""
    rows = [Feedback(number, ids_of([1]), ids_of([number]), True, "", "") for number in range(9)]
    batch = rows_dataset(rows, feedback_columns).__getitems__([4, 5, 6, 7])
    assert [one["KL_completion_ids"] for one in batch] == [[7], [4], [5], [6]]


def test_rows_of_a_trainer_are_not_filtered():
    """Its data set's `map` does nothing: a filter, which goes through it, is refused."""
    made = rows_dataset([1, 2, 3], lambda rows: {"number": list(rows)})
    assert made.map(lambda row: row) is made
    assert made[:]["number"] == [1, 2, 3]
    with pytest.raises(TypeError, match="chosen already"):
        made.filter(lambda row: False)


WORDS = [f"word{number}" for number in range(500)]


def told(seed: int, length: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=length))


@pytest.mark.parametrize(
    ("rows", "note"),
    {
        # 40 rows, each with a copy in which the last words of question and answer differ.
        "copies": (
            [
                (f"{told(n, 30)} {end}?", f"{told(n + 1000, 20)} {end}")
                for n in range(40)
                for end in "ab"
            ],
            "80 of 80 rows are nearly the same as others: they are held out together, or trained"
            " on together",
        ),
        "templated": (
            [(f"{told(1, 40)} number {n}?", f"It is {n}.") for n in range(80)],
            "80 of 80 rows are nearly the same as others, too many to keep apart",
        ),
        "different": ([(told(n, 30), told(n + 1000, 20)) for n in range(1, 81)], None),
    }.values(),
    ids=["copies", "templated", "different"],
)
def test_rows_that_are_nearly_the_same_are_held_out_together(tiny_tokenizer, rows, note):
    """With other words in a few places they would flatter the result; where all rows are alike it
    is said, and rows are held out all the same. The order of the file changes nothing.
    """
    data = [chat(*turns, row=number) for number, turns in enumerate(rows, 1)]
    settings = {"seq_len": 512, "truncation": "stop", "holdout": 0.2, "seed": 3}
    found = prepare_stage_rows(data, Templater(tiny_tokenizer), **settings)
    assert len(found.holdout) == 16
    said = [line for line in found.notes if "nearly the same" in line]
    assert [line.startswith(note) for line in said] == ([True] if note else [])
    copies = Counter((row.number - 1) // 2 for row in found.holdout)
    assert note is None or "too many" in note or {*copies.values()} == {2}
    turned = prepare_stage_rows(data[::-1], Templater(tiny_tokenizer), **settings)
    assert {row.number for row in turned.holdout} == {row.number for row in found.holdout}
