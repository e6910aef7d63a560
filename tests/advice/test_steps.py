"""Batch, epochs and held-out rows follow from the number of rows, for every objective."""

import json
import random
import re
from math import ceil
from operator import le

import pytest

from advisor.advice.search.rows import aim_of, held_out, settings_for_rows, steps_in
from advisor.advice.search.settings import BATCH, axes_of, settings_by_rule
from advisor.advice.types import Chosen
from advisor.methods import methods
from advisor.plan.entries import entries
from advisor.plan.read import read_plan
from tests.advice.situations import RULES, asked, fitted
from tests.conftest import scaled

CLASSES = (*((name, False) for name in methods().objectives), ("sft", True))


def following(objective, classes, rows, *, update="lora", multiple=1, **changes):
    """(trained rows or sequences, batch, epochs, held-out rows) of so many rows."""
    facts = {"data_rows": rows, "params_b": 8, "architecture": "encoder" if classes else "decoder"}
    settings = settings_by_rule(RULES, facts | axes_of(objective, update, None)) | changes
    unit = "sequence" if methods().objective(objective).splits_documents else "row"
    aim = aim_of(objective, classes=classes)
    found = settings_for_rows(settings, aim, rows, multiple=multiple, unit=unit).settings
    share = found["holdout"].value if "holdout" in found else 0.05
    return rows * (1 - share), found[BATCH], found["epochs"], round(rows * share)


def many_rows(seed):
    """Numbers of rows from 1 to a million, ascending, thresholds of rules with their neighbours."""
    rng = random.Random(seed)
    found = {round(10 ** rng.uniform(0, 6)) for _ in range(scaled(60))}
    return sorted(found | {1, 2, 5, 999, 1000, 1001, 19_999, 20_000, 99_999, 100_000, 1_000_000})


@pytest.mark.parametrize(("objective", "classes"), CLASSES)
@pytest.mark.parametrize("update", ["lora", "full"])
def test_rows_become_enough_steps(objective, classes, update):
    """Too few steps remain only with the smallest batch and the most epochs, whatever the rows."""
    aim = aim_of(objective, classes=classes)
    assert aim, f"rules/objectives/{objective}.yaml has no steps"
    before = (0, -1000, 0)
    for rows in many_rows(0):
        trained, batch, epochs, held = following(objective, classes, rows, update=update)
        steps = steps_in(trained, per_step=batch.value, epochs=epochs.value)
        if steps < aim["least"]:
            assert batch.value <= aim["smallest_batch"], (rows, batch)
            assert epochs.value >= aim["most_epochs"], (rows, epochs)
        now = (batch.value, -epochs.value, held)
        assert all(map(le, before, now)), (rows, before, now)
        before = now
    # What is not known changes no setting.
    settings = settings_by_rule(RULES, {"params_b": 8} | axes_of(objective, update, None))
    found = settings_for_rows(settings, aim, None, multiple=1)
    assert found.settings == {key: settings[key] for key in (BATCH, "epochs")}


@pytest.mark.parametrize("wanted", [32, 64, 256, 500])
def test_held_out_rows_are_at_most_a_fifth(wanted):
    """Training keeps four fifths of the rows, and large sets lose at most a thousand."""
    for rows in many_rows(2):
        held = held_out(rows, wanted)
        assert held <= min(rows / 5, 1000)
        assert held >= wanted or held == rows // 5


def test_what_a_layer_of_ones_own_sets_stays():
    """A company's batch and epochs are not changed."""
    company = {"effective_batch_size": 64, "epochs": 1, "holdout": 0.01}
    own = {key: Chosen(value=one, because="ours", is_own=True) for key, one in company.items()}
    _, batch, epochs, _ = following("dpo", False, 200, **own)
    assert (batch.value, epochs.value) == (64, 1)


KINDS = {
    "sft+lora": "paired", "dpo+lora": "preference", "kto+full": "unpaired_feedback",
    "grpo+lora": "prompts_with_verifier", "rm+lora": "preference",
}  # fmt: skip


@pytest.mark.parametrize("composition", KINDS)
@pytest.mark.parametrize("cards", [1, 2, 3, 8])
def test_comments_count_steps_that_the_fitted_batch_has(cards, composition):
    """Whatever the number of GPUs, the steps that a comment names follow from the plan's values."""
    for rows in (60, 189, 1000, 7000):
        situation = asked(
            task="other", data_rows=rows, data_kind=KINDS[composition], gpu="A100 80GB",
            gpus=cards, model="Qwen/Qwen3-0.6B",
        )  # fmt: skip
        chosen = fitted(composition, situation).reasons
        per_step = chosen["micro_batch_size"].value * chosen["grad_accum"].value * cards
        held = round(rows * chosen["holdout"].value)
        steps = ceil(ceil((rows - held) / per_step) * chosen["epochs"].value)
        said = "\n".join(chosen[key].because for key in ("grad_accum", "epochs"))
        named = re.findall(r"(?:this leaves about|: about) ([\d,]+)", said)
        assert {int(one.replace(",", "")) for one in named} <= {steps}, (rows, said)


@pytest.mark.parametrize(
    ("name", "row", "composition", "tokens"),
    [
        ("sums", {"problem": "What is {n} + 3?", "answer": "{n}"}, "grpo+lora", 1024),
        ("pairs", {"prompt": "What is {n}?", "completion": "It is {n}."}, "distill+lora", 128),
    ],
)
def test_answers_are_as_long_as_rows_that_hold_some(tmp_path, call, name, row, composition, tokens):
    """A row that is a question alone says nothing of how long its answer has to be."""
    text, rows = json.dumps(row), tmp_path / f"{name}.jsonl"
    rows.write_text("".join(text.replace("{n}", str(n)) + "\n" for n in range(300)))
    given = ("--model", "Qwen/Qwen3-0.6B", "--teacher-model", "Qwen/Qwen3-4B", "--gpu", "H100")
    chosen = ("--choose", composition, "--force", "--plan", str(tmp_path / "p.yaml"))
    call("--task", "reasoning", "--data", str(rows), *given, *chosen)
    assert read_plan(tmp_path / "p.yaml").stages[0].options["response_tokens"] == tokens


def test_each_task_has_what_follows_from_its_own_rows(tmp_path, call):
    """Of several tasks the small ones differ by overrides, each with its reason."""
    named = []
    for name, rows in (("small", 60), ("large", 3000)):
        lines = (
            json.dumps({"prompt": f"{name} {i}?", "completion": f"It is {i}."}) for i in range(rows)
        )
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        named += ["--tasks", f"{name}={tmp_path / name}.jsonl"]
    plan = tmp_path / "plan.yaml"
    code, _, err = call(
        "--json", "--task", "multi_department", *named, "--gpu", "RTX 4090",
        "--model", "Qwen/Qwen3-0.6B", "--plan", plan,
    )  # fmt: skip
    assert code == 0, err
    small, large = (entry.stage for entry in entries(read_plan(plan)))
    assert small.effective_batch_size < large.effective_batch_size
    assert small.epochs > large.epochs
    assert (round(small.holdout * 60), round(large.holdout * 3000)) == (12, 64)
    assert "60 rows" in plan.read_text()
