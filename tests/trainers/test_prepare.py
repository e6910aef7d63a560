"""Masks, lengths, the hold-out split and packing."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import structs

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError
from tests.trainers.fitting import fit_rows, in_memory, split_rows, tokenise
from trainers.rows import IGNORED, Row, Templater, dataset_columns, pack
from trainers.rows.row import cut_row, ids_of
from trainers.rows.stage_rows import prepare_rows


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def chat(*turns: str, row: int = 1, weights: tuple[float, ...] = ()) -> Example:
    roles = ("user", "assistant")
    return Example(
        row=row,
        messages=tuple(
            Message(roles[place % 2], text, weights[place] if weights else 1.0)
            for place, text in enumerate(turns)
        ),
    )


def learned_text(tokenizer, row: Row) -> str:
    return tokenizer.decode([label for label in row.labels if label != IGNORED])


def test_only_answers_are_learned_with_the_token_that_ends_them(tokenizer):
    """The learned tokens are exactly what the assistant says and the end-of-turn token, even though
    padding is that token too.
    """
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    (row,) = tokenise([chat("Where is my parcel?", "It is on its way.")], Templater(tokenizer))
    assert learned_text(tokenizer, row) == "It is on its way.<|im_end|>"
    assert (
        tokenizer.decode(row.input_ids)
        == "<|im_start|>user\nWhere is my parcel?<|im_end|>\n<|im_start|>assistant\nIt is on its"
        " way.<|im_end|>\n"
    )


@settings(max_examples=25)  # each renders a template several times
@given(st.lists(st.sampled_from([0, 1]), min_size=1, max_size=5))
def test_exactly_the_answers_with_a_weight_are_learned(tokenizer, answers):
    """Whatever the order of weights 0 and 1, what is learned is the answers of weight 1, each with
    its end; the whole conversation is read.
    """
    turns = [turn for at in range(len(answers)) for turn in (f"Ask {at}?", f"Say {at}.")]
    weights = tuple(weight for learn in answers for weight in (1, learn))
    wanted = "".join(f"Say {at}.<|im_end|>" for at, learn in enumerate(answers) if learn)
    if not wanted:
        with pytest.raises(InputError, match="no token to learn"):
            tokenise([chat(*turns, weights=weights)], Templater(tokenizer))
        return
    (row,) = tokenise([chat(*turns, weights=weights)], Templater(tokenizer))
    assert learned_text(tokenizer, row) == wanted
    assert all(turn in tokenizer.decode(row.input_ids) for turn in turns)


def test_loss_on_all_learns_everything(tokenizer):
    """loss_on: all puts every token into the loss."""
    (row,) = tokenise([chat("One?", "First.")], Templater(tokenizer, learn_all=True))
    assert row.labels == row.input_ids


def test_a_row_without_a_token_to_learn_is_an_error_that_names_it(tokenizer):
    """A row whose answers all have weight 0 stops the run, with its number; other faulty rows come
    with it.
    """
    rows = [
        chat("One?", "First.", row=1),
        chat("Two?", "Second.", row=7, weights=(1, 0)),
        Example(row=9),
    ]
    with pytest.raises(InputError, match=r"row 7: no token to learn[\s\S]*row 9: neither"):
        tokenise(rows, Templater(tokenizer))


def test_a_template_without_end_of_turn_gets_the_end_token(tokenizer):
    """Where the template does not end an answer, the end token is added and counted, so that the
    model learns to stop.
    """
    from copy import deepcopy

    bare = deepcopy(tokenizer)
    bare.chat_template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if"
        " add_generation_prompt %}assistant: {% endif %}"
    )
    templater = Templater(bare)
    (row,) = tokenise([chat("One?", "First.")], templater)
    assert row.labels[-1] == bare.eos_token_id
    assert learned_text(bare, row).startswith("First.")
    assert any("which the chat template leaves out" in note for note in templater.notes)


def test_a_template_that_rewrites_earlier_turns_still_masks_exactly(tokenizer):
    """Templates of thinking models add a block to the last answer alone; both answers are still
    found.
    """
    from copy import deepcopy

    thinking = deepcopy(tokenizer)
    thinking.chat_template = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' and loop.last"
        " %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}<|im_end|>\n{% endfor %}{% if"
        " add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    (row,) = tokenise([chat("One?", "First.", "Two?", "Second.")], Templater(thinking))
    assert learned_text(thinking, row) == "First.<|im_end|><think>\n\n</think>\n\nSecond.<|im_end|>"


def test_without_a_template_the_stated_plain_one_is_used_and_kept(tokenizer):
    """A base model's tokenizer gets the plain template, which is then saved with the result."""
    from copy import deepcopy

    base = deepcopy(tokenizer)
    base.chat_template = None
    templater = Templater(base)
    (row,) = tokenise([chat("One?", "First.")], templater)
    assert tokenizer.decode(row.input_ids) == "User: One?\n\nAssistant: First.<|im_end|>\n\n"
    assert learned_text(base, row) == " First.<|im_end|>"
    assert base.chat_template
    assert "plain" in templater.template_source


def test_prompt_and_completion_without_a_template_stay_as_written(tokenizer):
    """Plain prompt and completion: the completion and the end token are learned, nothing is put
    around them.
    """
    from copy import deepcopy

    base = deepcopy(tokenizer)
    base.chat_template = None
    example = Example(
        row=1, messages=(Message("user", "Tea:"), Message("assistant", " green")), plain=True
    )
    (row,) = tokenise([example], Templater(base))
    assert base.decode(row.input_ids) == "Tea: green<|im_end|>"
    assert learned_text(base, row) == " green<|im_end|>"


def test_raw_text_is_learned_whole_and_cut_into_pieces(tokenizer):
    """Raw text longer than seq_len becomes several sequences; every token but the very first is
    learned exactly once.
    """
    text = "The shop sells tea. " * 40
    rows = tokenise([Example(row=1, text=text)], Templater(tokenizer))
    fit = fit_rows(rows, seq_len=32, truncation="stop")
    assert fit.split == 1
    assert [label for row in fit.rows for label in row.labels[1:]] == list(rows[0].input_ids)[1:]
    assert all(2 <= row.tokens <= 32 for row in fit.rows)
    assert rows[0].input_ids[-1] == tokenizer.eos_token_id


def test_a_label_becomes_the_answer(tokenizer):
    """Classification rows are questions whose answer is the label."""
    (row,) = tokenise(
        [Example(row=1, text="The cup is broken", label="complaint")], Templater(tokenizer)
    )
    assert learned_text(tokenizer, row) == "complaint<|im_end|>"


# --------------------------------------------------------------------------- length


def rows_of(*lengths: int) -> list[Row]:
    """Rows of given lengths whose last token is learned."""
    return [
        Row(
            number=place,
            input_ids=tuple(range(length)),
            labels=(IGNORED,) * (length - 1) + (length - 1,),
            prompt="p",
            shown="p",
            expected="e",
            key=f"k{place}",
            text=f"t{place}",
        )
        for place, length in enumerate(lengths, 1)
    ]


@pytest.mark.light
def test_too_many_long_rows_stop_the_run():
    """truncation: stop refuses when more than 5 % of the rows are over seq_len, and says how many
    and how long.
    """
    with pytest.raises(
        InputError, match=r"2 of 20 rows are longer than seq_len 10 .*the longest has 30"
    ):
        fit_rows(rows_of(*[5] * 18, 20, 30), seq_len=10, truncation="stop", cut=cut_row)


@pytest.mark.light
def test_a_few_long_rows_are_left_out_with_a_count():
    """truncation: stop leaves out up to 5 % of the rows, and counts them."""
    fit = fit_rows(rows_of(*[5] * 19, 30), seq_len=10, truncation="stop")
    assert (len(fit.rows), fit.dropped) == (19, 1)
    assert fit.notes == ["1 of 20 rows were left out: longer than seq_len 10 (row 20)"]


@pytest.mark.light
def test_nothing_left_is_an_error():
    """When no row fits, the run stops and names the shortest."""
    with pytest.raises(InputError, match="no row fits into seq_len 8"):
        fit_rows(rows_of(20, 30), seq_len=8, truncation="drop")


# --------------------------------------------------------------------------- split and packing


def test_the_seed_changes_which_rows_are_held_out(tokenizer):
    """As many of them with each."""
    rows = tokenise(
        [chat(f"Question {number}?", "a", row=number) for number in range(40)], Templater(tokenizer)
    )
    assert split_rows(rows, share=0.25, seed=3)[1] != split_rows(rows, share=0.25, seed=4)[1]
    assert len(split_rows(rows, share=0.25, seed=3)[1]) == 10
    assert split_rows(rows, share=0.0, seed=3)[1] == []


@pytest.mark.light
def test_packing_never_predicts_the_first_token_of_a_row():
    """It would be from the row before."""
    table = dataset_columns(pack(rows_of(6, 5, 4, 3, 2, 10, 7), 10), lengths=True)
    for labels, lengths in zip(table["labels"], table["seq_lengths"], strict=True):
        assert len(labels) == sum(lengths)
        assert all(labels[sum(lengths[:place])] == IGNORED for place in range(len(lengths)))


# --------------------------------------------------------------------------- kept in the run folder


def test_rows_are_prepared_once_and_come_back_the_same(make, monkeypatch):
    """A second call takes the rows from the run folder, equal in every field, and does not read the
    data again.
    """
    import trainers.rows.stage_rows as module
    from trainers.start.loading import load_tokenizer

    job = make(seq_len=64)
    first = in_memory(prepare_rows(job, load_tokenizer(job)))
    monkeypatch.setattr(
        module, "read_examples", lambda *args, **kwargs: pytest.fail("prepared again")
    )
    second = in_memory(prepare_rows(job, load_tokenizer(job)))
    assert second == first
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
    """Another length, split, mask, file content or chat template is another file; the stage's old
    one goes.
    """
    from trainers.start.loading import load_tokenizer

    data = tmp_path / "copy.jsonl"
    data.write_bytes(chats.read_bytes())
    keys = {"seq_len": 64, "job_data": data}
    job = make(**keys)
    prepare_rows(job, load_tokenizer(job))
    (first,) = (job.run / "prepared").glob("*.json")
    if isinstance(change, dict):
        job = make(**keys | change)
    tokenizer = load_tokenizer(job)
    if change == "data":
        data.write_bytes(chats.read_bytes().replace(b"kettle", b"teapot"))
    elif change == "template":
        tokenizer.chat_template += "{# another #}"
    elif change == "mapping":
        job = replace(
            job,
            entry=structs.replace(
                job.entry, data=structs.replace(job.data, mapping={"messages": "messages"})
            ),
        )
    prepare_rows(job, tokenizer)
    (second,) = (job.run / "prepared").glob("*.json")
    assert second != first


@pytest.mark.parametrize("damage", ["cut", "bit", "checksum"])
def test_a_broken_file_is_prepared_again(damage, make):
    """A file that was cut short by a full disk, or in which one bit has changed, is no reason to
    fail, nor to train on half of it or on other tokens.
    """
    from trainers.start.loading import load_tokenizer

    job = make(seq_len=64)
    first = in_memory(prepare_rows(job, load_tokenizer(job)))
    (file,) = (job.run / "prepared").glob("*-rows.arrow")
    whole = file.read_bytes()
    token = whole.index(ids_of(first.train[0].input_ids).tobytes())
    if damage == "cut":
        file.write_bytes(whole[:-200])
    elif damage == "bit":
        file.write_bytes(whole[:token] + bytes([whole[token] ^ 1]) + whole[token + 1 :])
    else:
        file.with_name(file.name.replace("-rows.arrow", ".json")).unlink()
    assert in_memory(prepare_rows(job, load_tokenizer(job))) == first
    assert file.read_bytes() == whole
    assert in_memory(prepare_rows(job, load_tokenizer(job))) == first


def test_the_plain_template_comes_back_with_the_rows(make):
    """A tokenizer without a template gets the plain one also when the rows were prepared before, so
    that it is saved with the result.
    """
    from trainers.start.loading import load_tokenizer

    job = make(seq_len=64)
    templates = []
    for _ in range(2):
        tokenizer = load_tokenizer(job)
        tokenizer.chat_template = None
        data = prepare_rows(job, tokenizer)
        templates.append(tokenizer.chat_template)
    assert templates[0] == templates[1]
    assert "Assistant:" in templates[0]
    assert data.template.startswith("plain")
