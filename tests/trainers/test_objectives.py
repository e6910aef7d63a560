"""Rows for preference, feedback, reward and classification training, and TRL's trainers on them."""

from collections import Counter

import pytest

torch = pytest.importorskip("torch")

from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.data_utils import extract_prompt
from trl.trainer.dpo_trainer import _tokenize

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError
from tests.trainers.families import FAMILIES, family_tokenizer
from tests.trainers.fitting import prepare_stage_rows
from tests.trainers.runs import chat
from tests.trainers.test_masks import FEW, SAID
from trainers.rows import ANSWERS, Templater
from trainers.rows.conversation import PROMPTS
from trainers.rows.heads import CLASSES, class_columns, class_names
from trainers.rows.preference import (
    FEEDBACK,
    PAIRS,
    feedback_columns,
    pair_rows,
    preference_columns,
    reward_columns,
)
from trainers.rows.row import Unusable
from trainers.stage.trl_trainer import with_ours

PAIR = ("chosen_ids", "rejected_ids")


def question(asked: str, *more: Message, row: int = 1, **keys) -> Example:
    return Example(row=row, messages=(Message("user", asked), *more), **keys)


def says(text: str) -> Message:
    return Message("assistant", text)


def preference(asked: str, chosen: str, rejected: str, row: int = 1) -> Example:
    return question(asked, row=row, chosen=(says(chosen),), rejected=(says(rejected),))


@pytest.fixture
def prepared(tiny_tokenizer):
    """`prepared(examples, kind)`: the rows that are kept, of the tiny model's tokenizer."""

    def prepare(examples, kind=ANSWERS, *, tokenizer=tiny_tokenizer, **keys):
        settings = {"seq_len": 512, "truncation": "stop", "holdout": 0.0, "seed": 1, **keys}
        return prepare_stage_rows(examples, Templater(tokenizer), kind=kind, **settings)

    return prepare


def has_note(data, *words):
    """Whether one of its notes has all of these words."""
    return any(all(word in note for word in words) for note in data.notes)


@pytest.mark.parametrize("name", FAMILIES)
@FEW
@given(question=SAID, answers=st.lists(SAID, min_size=2, max_size=2, unique=True))
def test_a_pair_has_one_prompt_and_two_whole_answers(name, question, answers):
    """The prompt is the same tokens for both, answers end their turn, and a text begins once."""
    tokenizer = family_tokenizer(name)
    (row,) = pair_rows(preference(question, *answers), Templater(tokenizer))
    for ids, said in ((row.chosen_ids, answers[0]), (row.rejected_ids, answers[1])):
        end = FAMILIES[name].last(said)
        assert tokenizer.decode([*row.prompt_ids, *ids]).endswith(end)
        assert tokenizer.decode(ids).endswith(end.lstrip())
    table = reward_columns([row])
    if name in ("llama3", "gemma", "mistral"):  # the template is applied once
        begins = tokenizer.bos_token_id
        texts = [ids for side in PAIR for ids in table[side]]
        assert [(ids[0], ids.count(begins)) for ids in texts] == [(begins, 1)] * 2
    assert question in tokenizer.decode(row.prompt_ids)


def test_pairs_are_the_tokens_that_trl_would_make():
    """They are, but for the line end after the last turn, which no model writes."""
    tokenizer = family_tokenizer("smollm")
    asked, said = "Where is my parcel?", ("On its way.", "No idea.")
    (row,) = pair_rows(preference(asked, *said), Templater(tokenizer))
    turns = [chat(asked, answer)["messages"] for answer in said]
    theirs = extract_prompt(dict(zip(("chosen", "rejected"), turns, strict=True)))
    prompt_ids = _tokenize(tokenizer, theirs["prompt"], add_generation_prompt=True)["input_ids"]
    assert list(row.prompt_ids) == prompt_ids
    line_end = tokenizer("\n", add_special_tokens=False)["input_ids"]
    for side, ours in (("chosen", row.chosen_ids), ("rejected", row.rejected_ids)):
        whole = _tokenize(tokenizer, theirs["prompt"] + theirs[side])["input_ids"]
        assert whole == [*prompt_ids, *ours, *line_end]


LONG_PROMPT = preference("the shop sells tea " * 40, "yes", "no", row=99)


@pytest.mark.parametrize(
    ("kind", "examples", "counts", "notes"),
    [
        (
            PAIRS,
            [
                *(preference(f"Question {n}?", "yes", "no", row=n) for n in range(1, 60)),
                preference("Well?", "yes ", "yes ", row=60),
                question("Well?", row=61, chosen=(says("yes"),)),
            ],
            (59, 2),
            [("both answers are the same", "row 60"), ("no pair", "row 61")],
        ),
        (
            PROMPTS,
            [*(preference(f"Ask {n // 2}?", f"a {n}", "b", row=n) for n in range(40)), LONG_PROMPT],
            (20, 21),
            [
                ("20 rows left out: repeated prompts",),
                ("longer than seq_len less response_tokens, which is 40 (row 99)",),
            ],
        ),
    ],
    ids=["pairs", "prompts"],
)
def test_rows_that_are_none_of_their_kind_are_counted_and_named(
    kind, examples, counts, notes, prepared
):
    """Prompts are never cut, and a prompt that leaves no room for an answer is left out."""
    data = prepared(examples, kind, seq_len=40, truncation="truncate")
    assert (len(data.train), data.dropped) == counts
    assert [words for words in notes if not has_note(data, *words)] == []


@pytest.mark.parametrize(
    ("kind", "examples", "said"),
    [
        (PAIRS, [preference("Well?", "yes", "no"), preference("Well?", "yes ", "yes ", row=60)],
         "row 60: both answers are the same"),
        (ANSWERS,
         [question(f"{n}?", says("Go away."), row=n, good=n % 2 == 0) for n in range(1, 21)],
         "row 1: an answer that people rejected"),
        (PROMPTS, [Example(row=1, text="The shop sells tea.")],
         "row 1: no question that a model could answer"),
    ],
    ids=["pairs", "answers", "prompts"],
)  # fmt: skip
def test_rows_that_are_none_of_their_kind_are_named_if_they_are_many(
    kind, examples, said, prepared
):
    """More than a few bad answers, equal ones or texts with nothing to ask are an error."""
    with pytest.raises(InputError, match=said):
        prepared(examples, kind)


def test_pairs_that_contradict_each_other_are_counted_and_stay_together(prepared):
    """A preference turned round never stands on the other side of the split."""
    rows = [
        preference(f"Question {number}?", f"first {number}", f"second {number}", row=number)
        for number in range(1, 21)
    ]
    turned = preference("Question 3?", "second 3", "first 3", row=30)
    data = prepared([*rows, turned], PAIRS, holdout=0.3)
    assert has_note(data, "2 rows contradict each other", "rows 3, 30")
    assert len({3, 30} & {row.number for row in data.holdout}) != 1
    same = [preference("Well?", f"first {n}", f"second {n}", row=n) for n in range(1, 21)]
    assert len(prepared(same, PAIRS, holdout=0.3).holdout) == 6  # other answers are other rows
    classes = [("Good tea", "a"), ("good  tea", "b"), ("Bad tea", "b")]
    texts = [Example(row=n, text=text, label=name) for n, (text, name) in enumerate(classes, 1)]
    said = "2 rows have the text of another row and another class (rows 1, 2)"
    assert has_note(prepared(texts, CLASSES), said)


def test_cutting_a_pair_keeps_something_of_both_answers(prepared):
    """A pair of which nothing, or nothing different, would be left is left out and counted."""
    long = "the shop sells tea " * 20
    examples = [
        preference("Well?", "yes " + long, "no " + long, row=1),
        preference("Well? " + long, "yes", "no", row=2),
        preference("Now?", long + "a", long + "b", row=3),
    ]
    data = prepared(examples, PAIRS, seq_len=40, truncation="truncate")
    (row,) = data.train
    assert (row.number, row.tokens, data.truncated, data.dropped) == (1, 40, 1, 2)


def test_feedback_keeps_its_verdicts(prepared, tiny_tokenizer):
    """Answers with a verdict become prompt, completion and label; a pair becomes two of them."""
    examples = [
        question("Well?", says("Yes."), row=1, good=True),
        question("Well?", says("Go away."), row=2, good=False),
        preference("Now?", "Soon.", "Never.", row=3),
    ]
    rows = prepared(examples, FEEDBACK).train
    said = [tiny_tokenizer.decode(row.completion_ids).removesuffix("<|im_end|>") for row in rows]
    assert said == ["Yes.", "Go away.", "Soon.", "Never."]
    assert [(row.number, row.label) for row in rows] == [
        (1, True), (2, False), (3, True), (3, False),
    ]  # fmt: skip
    others = [list(rows[place].completion_ids) for place in (3, 0, 1, 2)]
    assert feedback_columns(rows)["KL_completion_ids"] == others


def test_prompts_come_from_any_kind_of_data(prepared, tiny_tokenizer):
    """Each kind gives its question, ready for an answer, and what may be compared with it."""
    examples = [
        preference("One?", "first", "second", row=1),
        question("Two?", says("Because."), row=2),
        question("Three?", says("Bad."), row=3, good=False),
        question("What is 2 + 2?", row=4, answer="4"),
        Example(row=5, text="The cup is broken", label="complaint"),
    ]
    data = prepared(examples, PROMPTS)
    told = [(row.shown, row.answer, row.verifiable) for row in data.train]
    assert told == [
        ("One?", "first", False),
        ("Two?", "Because.", False),
        ("Three?", None, False),
        ("What is 2 + 2?", "4", True),
        ("The cup is broken", "complaint", True),
    ]
    for row in data.train:
        asked = f"<|im_start|>user\n{row.shown}<|im_end|>\n<|im_start|>assistant\n"
        assert tiny_tokenizer.decode(row.prompt_ids) == asked


def test_classes_are_numbered_by_name_and_texts_are_tokenised_without_a_template(prepared):
    """Classes go in the order of names or values, texts get the tokenizer's special tokens."""
    tokenizer = family_tokenizer("gemma")
    examples = [
        Example(row=number, text=f"text {number}", label=("2", "10", "1")[number % 3])
        for number in range(30)
    ]
    data = prepared(examples, CLASSES, tokenizer=tokenizer)
    assert class_names(row.name for row in data.train) == ["1", "2", "10"]
    table = class_columns(data.train, numbers={"1": 0, "2": 1, "10": 2})
    assert tokenizer.decode(table["input_ids"][0]) == "<bos> text 0"
    assert table["labels"][:3] == [1, 2, 0]


def test_every_class_is_trained_on_and_held_out_in_its_share(prepared):
    """A rare class is not lost to the hold-out rows; one of a hundred is held out in its share."""
    examples = [
        Example(row=number, text=f"text {number}", label="often" if number < 100 else "seldom")
        for number in range(110)
    ] + [Example(row=200, text="alone", label="once")]
    for seed in range(5):
        data = prepared(examples, CLASSES, holdout=0.2, seed=seed)
        assert Counter(row.name for row in data.holdout) == {"often": 20, "seldom": 2}
        assert {row.name for row in data.train} == {"often", "seldom", "once"}


@pytest.mark.parametrize("objective", ["dpo", "rm", "kto"])
def test_trls_trainers_take_the_rows_as_they_are(
    objective, prepared, tiny_model, tiny_tokenizer, tmp_path
):
    """A step of TRL's trainer on our rows has the tokens we prepared, and a finite loss."""
    examples = [
        preference(f"Question {number}?", f"Yes, {number}.", "No.", row=number)
        for number in range(8)
    ]
    kind, sides, config, trainer_class, table = {
        "dpo": (PAIRS, PAIR, DPOConfig, DPOTrainer, preference_columns),
        "rm": (PAIRS, PAIR, RewardConfig, RewardTrainer, reward_columns),
        "kto": (FEEDBACK, ("completion_ids",), KTOConfig, KTOTrainer, feedback_columns),
    }[objective]
    data = prepared(examples, kind)
    loader, extra = AutoModelForCausalLM, {}
    if objective == "rm":
        loader, extra = AutoModelForSequenceClassification, {"num_labels": 1}
    args = config(
        output_dir=str(tmp_path), max_steps=1, per_device_train_batch_size=4, report_to="none",
        use_cpu=True, bf16=False, save_strategy="no", disable_tqdm=True, max_length=None,
    )  # fmt: skip
    trainer = with_ours(trainer_class, ())(
        model=loader.from_pretrained(tiny_model, **extra),
        args=args,
        train_dataset=Dataset.from_dict(table(data.train)),
        processing_class=tiny_tokenizer,
    )
    batch = next(iter(trainer.get_train_dataloader()))
    first = batch["input_ids"][0][batch["attention_mask"][0].bool()].tolist()
    assert first in [[*row.prompt_ids, *getattr(row, side)] for row in data.train for side in sides]
    assert torch.isfinite(torch.tensor(trainer.train().training_loss))


def test_a_conversation_that_the_template_refuses_is_no_pair():
    """A pair whose conversation the template cannot write is refused in its own words."""
    tokenizer = family_tokenizer("gemma")
    answers = {"chosen": (says("Yes."),), "rejected": (says("No."),)}
    example = question("Well?", Message("user", "Now?"), **answers)
    with pytest.raises(Unusable, match="roles must alternate"):
        pair_rows(example, Templater(tokenizer))


@pytest.mark.parametrize(
    ("kind", "name"), [(PAIRS, "prompt_ids"), (PROMPTS, "prompt_ids"), (ANSWERS, "input_ids")]
)
def test_a_system_text_goes_in_front_of_the_question_where_the_template_takes_none(
    kind, name, prepared
):
    """Rows, pairs and prompts get it alike, and the rows are counted."""
    tokenizer = family_tokenizer("gemma")
    messages = (Message("system", "Be kind."), Message("user", "Well?"))
    answers = {"chosen": (says("Yes."),), "rejected": (says("No."),)}
    data = prepared([Example(row=1, messages=messages, **answers)], kind, tokenizer=tokenizer)
    asked = "<bos><start_of_turn>user\nBe kind.\n\nWell?<end_of_turn>\n<start_of_turn>model\n"
    assert tokenizer.decode(getattr(data.train[0], name)).startswith(asked)
    assert any(note.startswith("1 row") and "takes no system turn" in note for note in data.notes)
