"""What each objective learns and leaves, and what users of other trainers suffer from."""

import json
import math
import re
import shutil
from functools import partial
from itertools import product
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

import errno
from dataclasses import replace
from pathlib import Path

from msgspec import structs
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from safetensors.torch import load_file
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
    TrainerState,
)

from advisor.data.example import Example, Message
from advisor.ground.errors import InputError, MachineNotReady, TrainingFailed
from advisor.ground.files import DISK
from advisor.plan.keys import key_specs
from advisor.plan.model import Launch
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
from tests.trainers.conftest import plan_file
from tests.trainers.families import LLAMA3, family_tokenizer
from tests.trainers.runs import (
    break_at,
    look_before,
    losses,
    result_of,
    same,
    trained,
    weights,
    whole_and_broken,
    write_rows,
)
from trainers import cpt, sft
from trainers.__main__ import main
from trainers.evaluation.pairs import chosen_rows
from trainers.job import libraries
from trainers.job.files import read_json
from trainers.job.job import TRAINING, Process
from trainers.keep import results
from trainers.rm import choose_padding
from trainers.rows import IGNORED, Templater
from trainers.rows.conversation import answer_row
from trainers.rows.preference import FEEDBACK, PAIRS
from trainers.rows.stage_rows import prepare_rows
from trainers.say.progress import Parts
from trainers.stage import run as stage
from trainers.stage.load import build_trainer, load_stage
from trainers.start import loading
from trainers.start.loading import load_tokenizer
from trainers.step import settings

# Beside the loss, while it runs.
SAID = {
    "rm": "accuracy", "dpo": "margins", "kto": "KL", "orpo": "margins", "grpo": "reward",
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


MIXED = {"weights_dtype": "float32", "precision": "mixed"}


@pytest.mark.parametrize(
    ("objective", "keys"),
    [
        *((name, MIXED) for name in ("sft", "dpo", "grpo")),
        ("rm", {**FULL, **MIXED}),
        # A module on a 4-bit base computes outside autocast, too.
        ("orpo", {"quantization": "nf4", "precision": "mixed"}),
        ("simpo", {"quantization": "nf4", "precision": "pure"}),
    ],
)
def test_what_is_saved_is_the_trained_model_as_anybody_loads_it(objective, keys, align):
    """In both precisions; autocast around the trained model is no difference from what was saved."""
    result = trained(align(objective, **keys_of(objective, max_steps=2, **keys), job_judge=False))
    assert result["resolved"]["autocast"] == ("bfloat16" if keys["precision"] == "mixed" else None)
    assert result["checks"][0]["ok"]
    limit = 0.02 if "quantization" in keys else 0.001
    assert f"(limit {limit})" in result["checks"][0]["text"]


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
    assert (found["rows"], result["verdict"]["word"]) == (10, "better")
    assert found["pair_accuracy"] > 0.9
    assert found["pair_accuracy_interval"][0] > 0.5
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
    job = align("rm", earlier=(sft.stage,), **still, job_max_steps=1, job_judge=False)
    first = trained(job)
    assert "rm: this trial reads about 4 of them" in capsys.readouterr().err
    one, other = (load_file(of.output / "adapter_model.safetensors") for of in (sft, job))
    shared = [name for name in one if "lora" in name]
    assert shared
    assert all((one[name] - other[name]).abs().max() < 1e-6 for name in shared)
    assert not any("starts from the base" in note for note in first["data"]["notes"])
    more = {"rank": 8, "max_steps": 1, "job_max_steps": 1, "job_judge": False}
    second = trained(align("rm", earlier=(sft.stage,), **more))
    note = "starts from the base: stage rm: rank is 8, the adapter it continues from has 16"
    assert any(note in one for one in second["data"]["notes"])


def test_padding_is_read_as_plain_loading_reads_it(align, tiny_model, tmp_path):
    """Without a padding token single texts are scored at their last token, in training too."""
    folder = shutil.copytree(tiny_model, tmp_path / "unpadded")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    job = align("rm", max_steps=8, job_model=folder, job_judge=False)
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
    keys = {**UPDATES["prefix"], "learning_rate": 2e-2, "max_steps": 20}
    job = align("rm", earlier=earlier, **keys, job_judge=False)
    assert [check["ok"] for check in trained(job)["checks"][:2]] == [True, True]
    assert losses(job)[-1] < losses(job)[0] - 0.1
    saved = load_file(job.output / "adapter_model.safetensors")
    names = [key.rpartition(".")[0].rpartition(".")[2] or key for key in saved]
    assert sorted(names) == ["prompt_embeddings", "score"]
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(job.output, num_labels=1)
    assert loaded.active_peft_config.num_virtual_tokens == 4


MARGINS = {"kto": "log-probability of liked answers less that of others"}


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_preferences_raise_the_margin_of_unseen_pairs(objective, trained_once):
    """Better answers of held-out rows gain on the worse ones, with an interval above zero."""
    result = result_of(trained_once(objective))
    metric = result["evaluation"]["metrics"][MARGINS.get(objective, "preference margin")]
    assert metric["after"] > metric["before"] + 1
    assert metric["interval"][0] > 0
    assert result["verdict"]["word"] == "better"
    assert result["evaluation"]["samples"]
    assert result["evaluation"]["general"]["rows"] > 0
    assert any("experimental" in note for note in result["data"]["notes"]) == (objective == "orpo")


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


@pytest.fixture(scope="module")
def configs():
    """Objective -> what TRL is configured with for a short stage, of those that were asked about."""
    return {}


@pytest.mark.parametrize(
    ("objective", "key"),
    [
        (name, key)
        for name in ("dpo", "kto", "orpo", "grpo", "rloo")
        for key in sorted(set(key_specs().objectives[name].keys) - NOT_OF_THE_CONFIG)
    ],
)
def test_every_key_reaches_the_trainer(objective, key, align, configs, monkeypatch):
    """Changing this key alone changes what TRL is configured with."""
    real, seen = settings.build_config, []
    stop = Mock(side_effect=lambda *args: seen.append(real(*args)) or 1 / 0)  # nothing is trained
    monkeypatch.setattr(settings, "build_config", stop)

    def configured(**keys):
        with pytest.raises(ZeroDivisionError):
            trained(align(objective, **{**keys_of(objective), **keys}, job_dry_run=True))
        return {name: str(value) for name, value in vars(seen[-1]).items() if "dir" not in name}

    if objective not in configs:
        configs[objective] = configured()
    assert configs[objective] != configured(**{key: OTHER_KEYS[key]})


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


def test_lora_learns_and_loads_in_plain_peft(make, monkeypatch):
    """It records everything, sends no usage ping, and leaves an adapter that changes the base."""
    monkeypatch.setattr(
        "trl.trainer.base_trainer.send_telemetry", lambda *_, **__: pytest.fail("telemetry")
    )
    job = make(max_steps=12, rank=8, trl={"adam_beta2": 0.95})
    result = trained(job)
    assert (result["status"], result["steps"], len(losses(job))) == ("done", 12, 12)
    assert result["loss_last"] < 0.9 * result["loss_first"]
    found, data = result["evaluation"], result["data"]
    assert found["holdout_loss_after"] < found["holdout_loss_before"]
    assert found["perplexity_before"] == pytest.approx(math.exp(found["holdout_loss_before"]))
    assert data["train_rows"] + data["holdout_rows"] == data["rows"] == 30
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    # On the CPU it is how much the process has grown, which is nothing after other tests.
    assert result["measured"]["peak_bytes"] >= 0
    options, trl, peft = (result["resolved"][name] for name in ("options", "trl", "peft"))
    assert (options["rank"], trl["adam_beta2"], peft["lora_alpha"]) == (8, 0.95, 16)
    tokenizer = AutoTokenizer.from_pretrained(job.output)
    assert tokenizer.chat_template
    ids = tokenizer("hello", return_tensors="pt")["input_ids"]
    model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(job.plan.model, dtype=torch.float32)
    assert not torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_a_loss_that_is_not_finite_ends_the_run(make, monkeypatch):
    """NaN ends the run with exit code 5 and saves nothing."""
    job = make(max_steps=40, job_judge=False)
    model = loading.load_base(job, torch.device("cpu"))
    model.model.norm.weight.data[0] = float("nan")
    monkeypatch.setattr(loading, "load_base", lambda *_, **__: model)
    with pytest.raises(TrainingFailed, match="loss became nan at step 1") as caught:
        sft.train(job)
    assert caught.value.exit_code == 5
    assert not [
        path for name in ("result.json", "*.safetensors") for path in job.output.rglob(name)
    ]


def test_a_moved_split_and_damaged_run_goes_on(
    make, monkeypatch, capsys, tmp_path, tiny_model, approved
):
    """A moved, split run under another torch goes on from the checkpoint before a damaged one."""
    keys = {"max_steps": 10, "save_steps": 2, "job_judge": False}
    whole = make(**keys)
    trained(whole)
    broken = make(**keys, job_run=tmp_path / "broken")
    break_at(7, broken, monkeypatch)
    newest = broken.checkpoints / "checkpoint-6" / "adapter_model.safetensors"
    *content, last = newest.read_bytes()
    newest.write_bytes(bytes([*content, last ^ 1]))
    with (broken.run / "metrics.jsonl").open("ab") as file:
        file.write(b'[]\n{"stage": "sft", "step": "x"}\n\xff\xfe\n{"st')
    shutil.copytree(tiny_model, tmp_path / "model-2")
    broken.run.rename(tmp_path / "moved")
    small = make(**keys | {"micro_batch_size": 2, "grad_accum": 2}, job_run=tmp_path / "moved")
    moved = replace(small, plan=structs.replace(small.plan, model=str(tmp_path / "model-2")))
    found = libraries.check_versions(quantized=False)
    versions = {**found, "torch": "9.9.9"}
    monkeypatch.setattr("trainers.stage.load.check_versions", lambda **_: versions)
    capsys.readouterr()
    result = trained(moved)
    said = capsys.readouterr().err
    said = said.replace(found["torch"], "TORCH")
    approved(re.findall(r".*(?:checkpoint-|metrics|resuming|beginning).*", said))
    assert losses(moved) == pytest.approx(losses(whole), rel=1e-4)
    assert (losses(moved)[:4], result["loss_first"]) == (losses(whole)[:4], losses(whole)[0])


def test_when_checkpoints_are_written_may_change_on_the_way(make, monkeypatch, tmp_path, capsys):
    """The run goes on from the last one, and its result has the same bytes."""
    keys = {"max_steps": 8, "dropout": 0.1, "job_judge": False}
    whole = make(**keys, save_steps=8)
    trained(whole)
    break_at(5, make(**keys, save_steps=3, job_run=tmp_path / "broken"), monkeypatch)
    later = make(**keys, save_steps=1, save_minutes=None, job_run=tmp_path / "broken")
    capsys.readouterr()
    trained(later)
    assert "resuming after step 3 of 8" in capsys.readouterr().err
    assert losses(later) == losses(whole)
    assert same(weights(whole), weights(later))
    kept = sorted(path.name for path in later.checkpoints.glob("checkpoint-*"))
    assert kept == ["checkpoint-7", "checkpoint-8"]


def test_checkpoints_of_other_settings_are_not_resumed(make, monkeypatch, capsys):
    """Another learning rate in the same folder starts from the beginning, and is named."""
    first = make(max_steps=4, save_steps=2, job_judge=False)
    with monkeypatch.context() as patch:
        patch.setattr(results, "save_result", Mock(side_effect=KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            trained(first)
    capsys.readouterr()
    job = make(max_steps=4, save_steps=2, learning_rate=1e-3, job_judge=False)
    trained(job)
    said = capsys.readouterr().err
    for step in (2, 4):
        assert f"checkpoint-{step} is not used: learning_rate 0.01 -> 0.001" in said
    assert len(losses(job)) == 4


def test_an_adapter_without_effect_fails(make, tmp_path):
    """Under --max-steps it is a warning; training has to change a prefix from its start."""
    keys = {"warmup": 0.5, "job_judge": False}  # the first step is at learning rate 0
    for update in ("lora", "prefix"):
        with pytest.raises(TrainingFailed, match="has no effect"):
            sft.train(make(update=update, max_steps=1, scheduler="linear", **keys))
    result = trained(make(max_steps=5, **keys, job_max_steps=1, job_run=tmp_path / "capped"))
    assert [check["ok"] for check in result["checks"]][:2] == [True, False]


def test_a_dry_run_measures_and_saves_nothing(make):
    """Two steps on the longest batch and an evaluation give memory and time, no weights."""
    job = make(grad_accum=4, max_steps=50, job_dry_run=True)
    sft.train(job)
    record = read_json(job.output / "dry_run.json")
    measured = record["measured"]
    found = (measured["counter"], len(record["losses"]), record["steps"])
    assert found == ("rss_growth", 2, 50)
    assert min(measured["peak_bytes"], record["evaluation_loss"]) > 0
    assert not list(job.run.rglob("*.safetensors"))


def test_a_plan_for_a_gpu_is_refused_without_one(make):
    """launch.device: cuda on a machine that cannot use it is exit 4, never training on the CPU."""
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    job = make()
    cuda = structs.replace(job.plan, launch=Launch(device="cuda"))
    with pytest.raises(MachineNotReady, match=r"the plan is for a GPU .*without CUDA|0 usable"):
        sft.train(replace(job, plan=cuda))


def test_a_disk_that_is_full_at_the_last_file_of_a_checkpoint_says_so(make, monkeypatch):
    """Also where it is the library that writes the file; nothing of the checkpoint stays."""
    full = Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr(TrainerState, "save_to_json", full)
    job = make(max_steps=1, job_judge=False)
    with pytest.raises(MachineNotReady, match=r"no space left to write it\n.*takes more than"):
        sft.train(job)
    assert list(job.checkpoints.iterdir()) == []


@pytest.fixture
def command(tiny_model, chats, tmp_path, monkeypatch):
    """`command(train=None, **keys)`: exit code and error.json of a stage, with `train` if given."""

    def run(train=None, **keys):
        plan = plan_file(tmp_path, tiny_model, chats, **keys)
        if train:
            monkeypatch.setattr(sft, "train", train)
        words = ["sft", str(plan), "--stage", "sft", "--run", str(tmp_path / "run")]
        return main(words), read_json(tmp_path / "run" / "stages" / "sft" / "error.json")

    return run


@pytest.mark.parametrize(
    "keys",
    [{"train_embeddings": True}, {"update": "prefix", "peft": {"modules_to_save": ["norm"]}}],
)
def test_a_task_begins_from_the_base_as_it_was_loaded(make, tmp_path, keys):
    """The same task has the same weights twice in a process, with trained embeddings too."""
    process, found = Process(bases={}), []
    for name in ("one", "two"):
        job = make(**keys, job_run=tmp_path / name, job_judge=False)
        trained(replace(job, process=process))
        found.append(weights(job))
    assert len(process.bases) == 1
    assert same(*found)


@pytest.mark.parametrize(("told", "times"), [("", 1), ("1", 0)], ids=["by hand", "by advise run"])
def test_failures_leave_a_record_and_their_exit_code(
    told, times, command, unloaded, monkeypatch, capsys, approved
):
    """error.json and stderr say the same, unless `advise run` is to show the file."""
    monkeypatch.setenv("ADVISE_TELLS_ERRORS", told)
    code, record = command(seq_len=8)
    approved([code, record])
    assert capsys.readouterr().err.count("longer than seq_len 8") == times


def test_bugs_have_a_log_and_lack_of_memory_the_next_smaller_setting(command, approved):
    """A bug is exit 70 with a traceback, lack of memory exit 5 with what changes least."""

    def full(job):
        job.enter(TRAINING)
        raise MemoryError("no room")

    code, found = command(Mock(side_effect=RuntimeError("surprise")))
    assert code == 70 == found["exit_code"]
    assert "surprise" in Path(found["hint"].split()[-1]).read_text()
    code, found = command(full, micro_batch_size=8)
    approved([code, found])


LONG = "Where is my parcel with the red kettle and the blue cup? " * 12


def test_6_the_end_token_is_learned_even_where_it_pads(make):
    """Where padding equals the end token, ends of answers have labels and padding has none."""
    callback = TrainerCallback()
    callback.store = None  # no checkpoints
    loaded = load_stage(make(seq_len=64, holdout=0.0), sft.SFT(), Parts("sft", shown=False))
    end = loaded.tokenizer.eos_token_id
    assert loaded.tokenizer.pad_token_id == end
    trainer = build_trainer(loaded, loaded.sequences, steps=1, callback=callback)
    batch = next(iter(trainer.get_train_dataloader()))
    assert batch["input_ids"].shape == batch["labels"].shape
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    learned = [[one for one in labels if one != IGNORED] for labels in batch["labels"].tolist()]
    assert {labels[-1] for labels in learned} == {end}


def test_6_generation_stops_where_training_taught_it_to(make, monkeypatch):
    """The saved model stops at the trained turn's end, whatever its config named before."""
    job = make(update="full", learning_rate=1e-3, max_steps=2, job_judge=False)
    model = loading.load_base(job, torch.device("cpu"))
    model.generation_config.eos_token_id = 0
    monkeypatch.setattr(loading, "load_base", lambda *_, **__: model)
    resolved = trained(job)["resolved"]
    own, saved = loading.load_tokenizer(job), AutoTokenizer.from_pretrained(job.output)
    assert saved.chat_template == own.chat_template
    assert own.eos_token_id in read_json(job.output / "generation_config.json")["eos_token_id"]
    assert resolved["stop_tokens_added"] == ["<|im_end|>"]


def test_7_a_template_of_another_model_is_noticed(tiny_model, approved):
    """Marks that the tokenizer does not know are named, and answers end with a real end token."""
    other = AutoTokenizer.from_pretrained(tiny_model)
    other.chat_template = LLAMA3
    example = Example(row=1, messages=(Message("user", "Well?"), Message("assistant", "Yes.")))
    foreign, proper = Templater(other), Templater(family_tokenizer("llama3"))
    assert answer_row(example, foreign).labels[-1] == other.eos_token_id
    answer_row(example, proper)
    approved([foreign.notes, proper.notes])


def test_16_what_is_guessed_and_what_is_dropped_is_said(make, tmp_path, capsys, approved):
    """The log says which columns were guessed and how to set them; left-out rows are counted."""
    rows = [
        {
            "anfrage": f"Question {number}, is it so? " + LONG * (number >= 18),
            "antwort": f"Answer {number}, it is so.",
            "gamma": number * 1.5,
        }
        for number in range(20)
    ]
    data = write_rows(tmp_path / "data.jsonl", rows)
    job = make(
        job_data=data, seq_len=64, truncation="drop", max_steps=2, warmup=0.0, job_judge=False
    )
    found = trained(job)["data"]
    assert found["train_rows"] + found["holdout_rows"] + found["dropped"] == found["rows"] == 20
    said = capsys.readouterr().err
    approved(found["notes"])
    assert [note for note in found["notes"] if note not in said] == []


SENTENCES = (
    "The red kettle boils water for tea.",
    "A cup stands on the shelf in the shop.",
    "Every parcel is packed by hand in the morning.",
)


def corpus(folder, name="corpus", documents=40, words=SENTENCES):
    """A folder of short text files, each a document."""
    target = folder / name
    target.mkdir()
    for number in range(documents):
        said = " ".join(words[(number + step) % len(words)] for step in range(8))
        (target / f"{number:03}.txt").write_text(f"Number {number}. {said}\n")
    return target


@pytest.fixture
def read(make):
    """A job that reads a corpus."""
    small = {
        "packing": True, "holdout": 0.2, "seq_len": 96, "update": "full", "objective": "cpt",
        "learning_rate": 3e-3, "max_steps": 12,
    }  # fmt: skip
    return lambda path, **keys: make(**{**small, **keys}, job_data=path)


@pytest.mark.parametrize(("update", "rate"), [("full", 3e-3), ("lora", 2e-2)])
def test_perplexity_of_held_out_documents_falls(read, tmp_path, update, rate):
    """Unseen documents become likelier, with an interval without zero; no answers are generated."""
    found = trained(read(corpus(tmp_path), update=update, learning_rate=rate))
    evaluation = found["evaluation"]
    assert evaluation["perplexity_after"] < evaluation["perplexity_before"]
    assert evaluation["holdout_loss_interval"][1] < 0
    assert (found["verdict"]["word"], evaluation["samples"]) == ("better", [])


def test_general_text_is_mixed_in_by_share(read, tmp_path):
    """A fifth of the tokens come from the replay file, counted and told; without it none do."""
    path = corpus(tmp_path)
    general = corpus(tmp_path, "general", words=("Once upon a time there was a king.",))
    tokenizer = load_tokenizer(read(path))
    alone = cpt.CPT().rows(read(path), tokenizer)
    mixed = cpt.CPT().rows(read(path, replay=str(general), replay_share=0.2), tokenizer)
    own = sum(row.tokens for row in alone.train)
    added = sum(row.tokens for row in mixed.train) - own
    assert 0.18 < added / (own + added) < 0.26
    assert any("general text mixed in" in note for note in mixed.notes)
    assert list(alone.holdout) == list(mixed.holdout)


def test_a_corpus_shorter_than_one_sequence_is_refused(read, tmp_path):
    """With how many tokens there are and what to do."""
    with pytest.raises(InputError, match="fewer than one sequence"):
        cpt.train(read(corpus(tmp_path, documents=2), seq_len=1000, holdout=0.0))
