"""Reward models and preference training: what each learns, leaves behind and refuses."""

import json
import math
import re
import shutil
from functools import partial
from itertools import product

import pytest

torch = pytest.importorskip("torch")

from peft import AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from advisor.ground.errors import InputError, TrainingFailed
from advisor.ground.files import DISK
from advisor.plan.keys import key_specs
from tests.trainers.alignment import (
    BETTER,
    FULL,
    QUESTIONS,
    SHORT,
    UPDATES,
    WORSE,
    keys_of,
    stage_of,
)
from tests.trainers.runs import (
    look_before,
    losses,
    result_of,
    trained,
    whole_and_broken,
    write_rows,
)
from trainers.evaluation.pairs import chosen_rows
from trainers.rm import choose_padding
from trainers.rows.preference import FEEDBACK, PAIRS
from trainers.rows.stage_rows import prepare_rows
from trainers.stage import run as stage
from trainers.start.loading import load_tokenizer
from trainers.step import settings

# Beside the loss, while it runs.
SAID = {
    "rm": "accuracy", "dpo": "margins", "kto": "kl", "orpo": "margins", "grpo": "reward",
    "rloo": "reward",
}  # fmt: skip


def go_on_from(job, folder):
    """Copy a stage that was trained once into the run of the folder; what that stage says."""
    shutil.copytree(job.output, folder / "run" / "stages" / job.stage.name)
    return result_of(job)


@pytest.mark.parametrize(
    ("objective", "update"),
    [*product(SAID, ("lora", "full")), *product(("orpo", "grpo"), ("adapter", "prefix"))],
)
def test_every_objective_trains_saves_and_loads(objective, update, trained_once):
    """Plain loading gives what was trained, its files are hashed, and no pickle is left."""
    job = trained_once(objective, update)
    result = result_of(job)
    assert result["status"] == "done"
    assert all(math.isfinite(loss) for loss in losses(job))
    assert len(losses(job)) == result["steps"]
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    measured = result["measured"]
    assert measured["tokens_per_s"] > 0
    assert 0 < measured.get("learned_tokens", 1) < measured["tokens"] <= measured["computed_tokens"]
    assert {"adapter_model.safetensors", "model.safetensors"} & set(result["files"])
    assert result["files"] == {
        name: {"bytes": DISK.size(job.output / name), "sha256": DISK.digest(job.output / name)}
        for name in result["files"]
    }
    said = (job.folder / "said.txt").read_text()
    assert re.search(rf"training: 1 of \d+ steps, loss \S+, {SAID[objective]} -?\d", said)
    assert not [path for name in ("*.bin", "*.pt*", "ref") for path in job.output.rglob(name)]


@pytest.mark.parametrize(
    ("objective", "update"), [("sft", "lora"), ("dpo", "lora"), ("rm", "full"), ("grpo", "lora")]
)
def test_what_mixed_precision_trained_is_checked_as_anybody_loads_it(objective, update, align):
    """Autocast around the trained model is no difference from what was saved."""
    keys = keys_of(objective, update, max_steps=2, weights_dtype="float32", precision="mixed")
    result = trained(align(objective, **keys, job_judge=False))
    assert result["resolved"]["autocast"] == "bfloat16"
    assert result["checks"][0]["ok"]
    assert "(limit 0.001)" in result["checks"][0]["text"]


@pytest.mark.parametrize(
    "update",
    [{}, FULL, {"update": "adapter"}, {"quantization": "nf4"}],
    ids=["lora", "full", "adapter", "qlora"],
)
def test_a_reward_model_learns_pairs_and_keeps_its_head(update, align):
    """Held-out pairs are told apart, and plain loading with one label gives the judge's scores."""
    job = align("rm", max_steps=20, **update)
    result = trained(job)
    found = result["evaluation"]
    assert result["loss_last"] < 0.5 * result["loss_first"]
    assert found["rows"] == 10
    assert found["pair_accuracy"] > 0.9
    assert found["pair_accuracy_interval"][0] > 0.5
    assert result["verdict"]["word"] == "better"
    if "quantization" in update:
        return
    loader = (
        AutoModelForSequenceClassification
        if job.stage.update == "full"
        else AutoPeftModelForSequenceClassification
    )
    model = loader.from_pretrained(job.output, num_labels=1, dtype=torch.float32).eval()
    rows = prepare_rows(job, load_tokenizer(job), PAIRS).holdout
    with torch.no_grad():
        told = [
            [
                float(model(input_ids=torch.tensor([[*row.prompt_ids, *ids]])).logits[0, 0])
                for ids in (row.chosen_ids, row.rejected_ids)
            ]
            for row in rows
        ]
    assert sum(map(sum, told)) / (2 * len(told)) == pytest.approx(found["mean_score"], abs=1e-3)


def test_length_alone_is_told_where_it_does_as_well(align, tmp_path):
    """A check says that length would do where the better answer is always the shorter one."""
    rows = [
        {
            "prompt": f"{QUESTIONS[number % 5]} {number}?",
            "chosen": f"Yes {number}.",
            "rejected": f"Yes {number}. We look at it today and send it back.",
        }
        for number in range(60)
    ]
    result = trained(align("rm", max_steps=20, job_data=write_rows(tmp_path / "short.jsonl", rows)))
    check = {one["name"]: one for one in result["checks"]}["scores-are-more-than-length"]
    assert not check["ok"]
    assert "preferring the shorter answer is right in 100.0%" in check["text"]
    length = result["evaluation"]["length"]
    assert (length["prefers"], length["accuracy"]) == ("shorter", 1.0)


def test_a_reward_model_goes_on_from_the_stage_before(align, trained_once, tmp_path, capsys):
    """Its module begins as the earlier one of the same form, else at the base with a note. A trial
    says how many of the rows it reads.
    """
    sft = trained_once("sft")
    go_on_from(sft, tmp_path)
    still = {"learning_rate": 1e-9, "scheduler": "constant", "warmup": 0.0, "max_steps": 1}
    job = align("rm", earlier=(sft.stage,), **still, job_max_steps=1)
    first = trained(job)
    assert "rm: this trial reads about 4 of them" in capsys.readouterr().err
    one, other = (load_file(of.output / "adapter_model.safetensors") for of in (sft, job))
    shared = [name for name in one if "lora" in name]
    assert shared
    assert all((one[name] - other[name]).abs().max() < 1e-6 for name in shared)
    assert not any("starts from the base" in note for note in first["data"]["notes"])
    second = trained(align("rm", earlier=(sft.stage,), rank=8, max_steps=1, job_max_steps=1))
    note = "starts from the base: stage rm: rank is 8, the adapter it continues from has 16"
    assert any(note in one for one in second["data"]["notes"])


def test_padding_is_read_as_plain_loading_reads_it(align, tiny_model, tmp_path):
    """Without a padding token single texts are scored at their last token, in training too."""
    folder = shutil.copytree(tiny_model, tmp_path / "unpadded")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    job = align("rm", max_steps=8, job_model=folder)
    trained(job)
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        job.output, num_labels=1, dtype=torch.float32
    ).eval()
    assert model.config.pad_token_id is None
    model.config.pad_token_id = -1  # as some models write that they have none
    choose_padding(model, load_tokenizer(job), prepare_rows(job, load_tokenizer(job), PAIRS))
    assert model.config.pad_token_id == AutoTokenizer.from_pretrained(job.output).pad_token_id
    model.config.pad_token_id = None
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    assert tokenizer.pad_token != tokenizer.eos_token
    ids = tokenizer("Go away<|im_end|>", return_tensors="pt")["input_ids"]
    alone = float(model(input_ids=ids).logits[0, 0])
    model.config.pad_token_id = tokenizer.pad_token_id
    padded = torch.cat([ids, torch.full((1, 5), tokenizer.pad_token_id)], dim=1)
    mask = (padded != tokenizer.pad_token_id).long()
    found = float(model(input_ids=padded, attention_mask=mask).logits[0, 0])
    assert found == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize("is_from_sft", [False, True], ids=["from-the-base", "from-sft"])
def test_a_prefix_is_a_reward_model_too(is_from_sft, align, trained_once, tmp_path):
    """A prefix under a score head, new or trained to write, learns and is saved as trained."""
    sft = trained_once("sft", "prefix")
    go_on_from(sft, tmp_path)
    earlier = (sft.stage,) if is_from_sft else ()
    job = align("rm", earlier=earlier, learning_rate=2e-2, max_steps=20, **UPDATES["prefix"])
    assert [check["ok"] for check in trained(job)["checks"][:2]] == [True, True]
    assert losses(job)[-1] < losses(job)[0] - 0.1
    saved = load_file(job.output / "adapter_model.safetensors")
    names = [key.rpartition(".")[0].rpartition(".")[2] or key for key in saved]
    assert sorted(names) == ["prompt_embeddings", "score"]
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(job.output, num_labels=1)
    assert loaded.active_peft_config.num_virtual_tokens == 4


MARGINS = {"kto": "log-probability of liked answers less that of others"}


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_preferences_raise_the_margin_of_unseen_pairs(objective, align):
    """Better answers of held-out rows gain on the worse ones, with an interval above zero."""
    result = trained(align(objective, max_steps=15))
    metric = result["evaluation"]["metrics"][MARGINS.get(objective, "preference margin")]
    assert metric["after"] > metric["before"] + 1
    assert metric["interval"][0] > 0
    assert result["verdict"]["word"] == "better"
    assert result["evaluation"]["samples"]
    assert result["evaluation"]["general"]["rows"] > 0
    assert any("experimental" in note for note in result["data"]["notes"]) == (objective == "orpo")


@pytest.mark.parametrize(("objective", "precision"), [("orpo", "mixed"), ("simpo", "pure")])
def test_pairs_train_a_module_on_a_4_bit_base_in_both_precisions(objective, precision, align):
    """What was saved is the trained model, which computes outside autocast, too."""
    result = trained(align(objective, max_steps=2, quantization="nf4", precision=precision))
    assert all(check["ok"] for check in result["checks"] if check["name"].startswith("saved"))


@pytest.mark.parametrize(
    ("objective", "before", "update"),
    [
        *((name, update, update) for name in ("dpo", "kto") for update in UPDATES),
        ("dpo", "lora", "full"),
    ],
)
def test_the_reference_is_the_model_as_the_stage_found_it(
    objective, before, update, align, trained_once, tmp_path
):
    """The first loss is that of two equal models, also for full tuning that merged a LoRA."""
    sft = trained_once("sft", before)
    go_on_from(sft, tmp_path)
    job = align(objective, earlier=(sft.stage,), **UPDATES[update], max_steps=3, job_judge=False)
    result = trained(job)
    assert losses(job)[0] == pytest.approx(math.log(2) if objective == "dpo" else 0.5, abs=1e-5)
    assert losses(job)[-1] < losses(job)[0]
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert not (job.output / "ref").exists()
    saved = [path.name for path in job.output.glob("*.safetensors")]
    assert sum(name.startswith(("adapter_model", "model")) for name in saved) == 1


def test_kto_takes_answers_with_a_verdict(align, tmp_path):
    """Unpaired feedback trains, and four rows at least go through at once."""
    rows = [
        {
            "prompt": f"{QUESTIONS[number % 5]} {number}?",
            "completion": (BETTER if number % 2 else WORSE).format(number),
            "label": bool(number % 2),
        }
        for number in range(40)
    ]
    path = write_rows(tmp_path / "feedback.jsonl", rows)
    job = align("kto", job_data=path, max_steps=10)
    result = trained(job)
    assert result["evaluation"]["feedback_rows"] == 10
    tokenizer = load_tokenizer(job)
    held = prepare_rows(job, tokenizer, FEEDBACK).holdout
    assert [one.expected for one in chosen_rows(tokenizer, held)] == [
        row.expected for row in held if row.label
    ]
    assert result["evaluation"]["moved_as_judged"] > 0.6
    with pytest.raises(InputError, match="micro_batch_size: 4 or more"):
        trained(align("kto", job_data=path, micro_batch_size=2))
    write_rows(path, ({**row, "label": True} for row in rows))
    with pytest.raises(InputError, match="people liked all"):
        trained(align("kto", job_data=path))


def test_a_broken_dpo_stage_goes_on_where_it_was(align, monkeypatch):
    """Called again after a crash, it ends with the losses of an unbroken run."""
    whole, broken = whole_and_broken(partial(align, "dpo", save_steps=2), 5, monkeypatch)
    assert losses(broken) == pytest.approx(losses(whole), rel=1e-5)


def test_one_preference_file_serves_the_whole_chain(align, trained_once, tmp_path):
    """It gives answers to sft, pairs to rm and dpo, and prompts to rloo, which rm rewards."""
    results = [go_on_from(trained_once(name), tmp_path) for name in ("sft", "rm", "dpo")]
    own = {key: SHORT[key] for key in ("response_tokens", "generations", "micro_batch_size")}
    job = align("rloo", earlier=(stage_of("sft"), stage_of("rm")), max_steps=2, **own)
    assert job.entry.starts_from == "sft"
    result = trained(job)
    assert {one["data"]["rows"] for one in (result, *results)} == {40}
    assert "the reward is the model rm" in result["data"]["notes"]
    assert result["evaluation"]["metrics"]["reward"]["rows"] == 10


@pytest.mark.parametrize(
    ("objective", "keys", "said"),
    [
        ("dpo", {}, "20 of 20 pairs are longer than seq_len 64"),
        ("grpo", SHORT,
         "20 of 20 prompts are longer than seq_len less response_tokens, which is 58"),
        ("grpo", {**SHORT, "response_tokens": 60}, "leave no room for a prompt"),
    ],
)  # fmt: skip
def test_prompts_longer_than_the_limit_stop_the_run(objective, keys, said, align, tmp_path):
    """Pairs and prompts over the limit are counted and named, and what may be done is said."""
    asked = "the shop sells tea " * 30
    rows = [
        {"prompt": f"Well {number}? {asked}", "chosen": "yes", "rejected": "no"}
        for number in range(20)
    ]
    path = write_rows(tmp_path / "long.jsonl", rows)
    with pytest.raises(InputError, match=said):
        trained(align(objective, job_data=path, seq_len=64, **keys))


def test_an_earlier_reward_model_is_nothing_to_write_with(align, trained_once, tmp_path):
    """A stage that writes cannot start from a model that scores."""
    go_on_from(trained_once("rm"), tmp_path)
    with pytest.raises(InputError, match="scores or classifies texts and does not generate"):
        trained(align("dpo", earlier=(stage_of("rm"),), start_from="rm"))


OTHER_KEYS = {"beta": 0.3, "generations": 2, "response_tokens": 5, "clip_range": 0.1}
NOT_OF_THE_CONFIG = {  # of rewards: test_rewards.py; of engines: rollouts/
    "verifier", "pattern", "schema", "overlong_tokens", "ngram", "reward_model", "reward",
    "rewards", "rollouts",
}  # fmt: skip


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        (name, key)
        for name in ("dpo", "kto", "orpo", "grpo", "rloo")
        for key in sorted(set(key_specs().objectives[name].keys) - NOT_OF_THE_CONFIG)
    ],
)
def test_every_key_reaches_the_trainer(objective, key, align, monkeypatch):
    """Changing this key alone changes what TRL is configured with."""
    seen = []
    real = settings.build_config

    def build(*args):
        seen.append(real(*args))
        raise KeyboardInterrupt  # nothing needs to be trained

    monkeypatch.setattr(settings, "build_config", build)

    def configured(**keys):
        with pytest.raises(KeyboardInterrupt):
            trained(align(objective, **{**keys_of(objective), **keys}, job_dry_run=True))
        return {name: str(value) for name, value in vars(seen[-1]).items() if "dir" not in name}

    assert configured() != configured(**{key: OTHER_KEYS[key]})


def test_a_reward_that_never_differs_is_told(align, tmp_path):
    """The run fails saying so, and so does the next attempt, with no step left to train."""
    code = "def score(prompts, completions, **columns):\n    return [1.0] * len(completions)\n"
    (tmp_path / "own.py").write_text(code)
    why = r"learned: reward own\.py:score never told .* apart, and gave 1 to"
    for _ in range(2):
        with pytest.raises(TrainingFailed, match=why):
            trained(align("grpo", **SHORT))


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_module_on_a_4_bit_base_goes_on_from_what_was_saved(objective, align, monkeypatch):
    """Model and reference have the file's float32 weights, although TRL rounds new modules."""
    keys = {"quantization": "nf4", "job_judge": False}
    first = align("sft", max_steps=2, **keys)
    trained(first)
    saved = load_file(first.output / "adapter_model.safetensors")
    earlier = (stage_of("sft", quantization="nf4"),)
    second = align(objective, earlier=earlier, name="second", max_steps=2, **keys)
    seen = {}
    look_before(monkeypatch, stage, "train_steps", lambda built: seen.update(
        {name: one.detach().clone() for name, one in built.trainer.model.named_parameters()}
    ))  # fmt: skip
    trained(second)
    for adapter in ("default", "ref") if objective == "dpo" else ("default",):
        for name, value in saved.items():
            path, _, last = name.rpartition(".")
            assert seen[f"{path}.{adapter}.{last}"].equal(value), (adapter, name)
