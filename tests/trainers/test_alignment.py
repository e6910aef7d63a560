"""Reward models and preference training on a tiny model: what each learns, what it leaves behind,
and what it refuses.
"""

import json
import math
import re
import shutil
from itertools import pairwise
from pathlib import Path

import pytest

from advisor.ground.errors import InputError, TrainingFailed
from advisor.ground.files import DISK
from advisor.plan.keys import key_specs
from tests.trainers.alignment import (
    BETTER,
    FULL,
    QUESTIONS,
    REWARD,
    SHORT,
    UPDATES,
    WORSE,
    losses,
    result_of,
    stage_of,
    trained,
)
from tests.trainers.runs import break_at

SAID = {
    "rm": "accuracy",
    "dpo": "margins",
    "kto": "kl",
    "orpo": "margins",
    "grpo": "reward",
    "rloo": "reward",
}  # beside the loss, while it runs


def go_on_from(job, folder):
    """Copy the run of a stage that was trained once into the folder; what that stage says."""
    shutil.copytree(job.run, folder / "run")
    return result_of(job)


@pytest.mark.parametrize("update", ["lora", "full"])
@pytest.mark.parametrize("objective", SAID)
def test_every_objective_trains_saves_and_loads(objective, update, trained_once):
    """Finite losses, a result that plain loading reproduces and that differs from where it started,
    no pickle, nothing of a second adapter; its files are recorded with their hashes.
    """
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
    assert not [
        path for pattern in ("*.bin", "*.pt", "*.pth", "ref") for path in job.output.rglob(pattern)
    ]


@pytest.mark.parametrize(
    ("objective", "update"),
    [("sft", {}), ("sft", FULL), ("dpo", {}), ("rm", {}), ("rm", FULL), ("grpo", {})],
)
def test_what_mixed_precision_trained_is_checked_as_anybody_loads_it(
    objective, update, align, tmp_path
):
    """Autocast around the trained model's forward is no difference between it and what was
    saved.
    """
    (tmp_path / "own.py").write_text(REWARD)
    result = trained(
        align(
            objective,
            **{**(SHORT if objective == "grpo" else {}), **update, "max_steps": 2},
            weights_dtype="float32",
            precision="mixed",
            job_judge=False,
        )
    )
    assert result["resolved"]["autocast"] == "bfloat16"
    assert result["checks"][0]["ok"]
    assert "(limit 0.001)" in result["checks"][0]["text"]


@pytest.mark.parametrize("update", ["adapter", "prefix"])
@pytest.mark.parametrize("objective", ["orpo", "grpo"])
def test_other_modules_train_too(objective, update, trained_once):
    """Bottleneck adapters and prefixes go with objectives that write; with DPO and KTO, see below."""
    result = result_of(trained_once(objective, update))
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]


# --------------------------------------------------------------------------- reward models


@pytest.mark.parametrize(
    "update",
    [{}, FULL, {"update": "adapter"}, {"quantization": "nf4"}],
    ids=["lora", "full", "adapter", "qlora"],
)
def test_a_reward_model_learns_pairs_and_keeps_its_head(update, align):
    """Better answers score higher on held-out pairs, and plain loading with one label gives the
    scores of the judge.
    """
    import torch
    from peft import AutoPeftModelForSequenceClassification
    from transformers import AutoModelForSequenceClassification

    from trainers.rows.preference import PAIRS
    from trainers.rows.stage_rows import prepare_rows
    from trainers.start.loading import load_tokenizer

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
    """Pairs whose better answer is always the shorter one: the scores learn it, and the check says
    that length would do.
    """
    path = tmp_path / "short.jsonl"
    rows = [
        {
            "prompt": f"{QUESTIONS[number % 5]} {number}?",
            "chosen": f"Yes {number}.",
            "rejected": f"Yes {number}. We look at it today and send it back.",
        }
        for number in range(60)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = trained(align("rm", max_steps=20, job_data=path))
    (check,) = [
        check for check in result["checks"] if check["name"] == "scores-are-more-than-length"
    ]
    assert not check["ok"]
    assert "preferring the shorter answer is right in 100.0%" in check["text"]
    assert result["evaluation"]["length"] == {
        "prefers": "shorter",
        "accuracy": 1.0,
        "agreement": result["evaluation"]["length"]["agreement"],
    }


def test_a_reward_model_goes_on_from_the_stage_before(align):
    """Its module begins as that of the stage before where both have one form, at the base with a
    note where they do not.
    """
    from safetensors.torch import load_file

    sft = stage_of("sft", rank=4)
    trained(align("sft", rank=4))
    first = trained(
        align(
            "rm",
            earlier=(sft,),
            rank=4,
            learning_rate=1e-9,
            scheduler="constant",
            warmup=0.0,
            max_steps=1,
            job_max_steps=1,
        )
    )
    job = align("rm", earlier=(sft,), rank=4)
    one, other = (
        load_file(job.run / "stages" / name / "adapter_model.safetensors") for name in ("sft", "rm")
    )
    shared = [name for name in one if "lora" in name]
    assert shared
    assert all((one[name] - other[name]).abs().max() < 1e-6 for name in shared)
    assert not any("starts from the base" in note for note in first["data"]["notes"])
    second = trained(align("rm", earlier=(sft,), rank=8))
    note = "starts from the base: stage rm: rank is 8, the adapter it continues from has 4"
    assert any(note in one for one in second["data"]["notes"])


def test_padding_is_read_as_plain_loading_reads_it(align, tiny_model, tmp_path):
    """Of a base without a padding token, single texts are scored at their last token: so are they
    in training.
    """
    import shutil

    import torch
    from peft import AutoPeftModelForSequenceClassification

    folder = tmp_path / "unpadded"
    shutil.copytree(tiny_model, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "pad_token_id": None}))
    job = align("rm", max_steps=8, job_model=folder)
    trained(job)
    model = AutoPeftModelForSequenceClassification.from_pretrained(
        job.output, num_labels=1, dtype=torch.float32
    ).eval()
    assert model.config.pad_token_id is None
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(job.output)
    assert tokenizer.pad_token != tokenizer.eos_token
    ids = tokenizer("Go away<|im_end|>", return_tensors="pt")["input_ids"]
    alone = float(model(input_ids=ids).logits[0, 0])
    model.config.pad_token_id = tokenizer.pad_token_id
    padded = torch.cat([ids, torch.full((1, 5), tokenizer.pad_token_id)], dim=1)
    assert float(
        model(input_ids=padded, attention_mask=(padded != tokenizer.pad_token_id).long()).logits[
            0, 0
        ]
    ) == pytest.approx(alone, abs=1e-5)


@pytest.mark.parametrize(
    "earlier",
    [(), (stage_of("sft", update="prefix", prefix_tokens=4),)],
    ids=["from-the-base", "from-sft"],
)
def test_a_prefix_is_a_reward_model_too(align, earlier):
    """Under a score head, alone or going on from a prefix that writes: pairs are told apart, the
    saved one scores the same, its keys are what was trained.
    """
    from peft import AutoPeftModelForSequenceClassification
    from safetensors.torch import load_file

    keys = {"update": "prefix", "prefix_tokens": 4}
    if earlier:
        trained(align("sft", **keys))
    job = align("rm", earlier=earlier, learning_rate=2e-2, max_steps=20, **keys)
    result = trained(job)
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert losses(job)[-1] < losses(job)[0] - 0.1
    saved = load_file(job.output / "adapter_model.safetensors")
    assert sorted(key.rpartition(".")[0].rpartition(".")[2] or key for key in saved) == [
        "prompt_embeddings",
        "score",
    ]
    assert (
        AutoPeftModelForSequenceClassification.from_pretrained(
            job.output, num_labels=1
        ).active_peft_config.num_virtual_tokens
        == 4
    )


# --------------------------------------------------------------------------- preferences


@pytest.mark.parametrize("objective", ["dpo", "kto", "orpo"])
def test_preferences_raise_the_margin_of_unseen_pairs(objective, align):
    """The better answers of held-out rows become likelier against the worse ones, with an interval
    above zero.
    """
    result = trained(align(objective, max_steps=15))
    name = (
        "log-probability of liked answers less that of others"
        if objective == "kto"
        else "preference margin"
    )
    metric = result["evaluation"]["metrics"][name]
    assert metric["after"] > metric["before"] + 1
    assert metric["interval"][0] > 0
    assert result["verdict"]["word"] == "better"
    assert result["evaluation"]["samples"]
    assert result["evaluation"]["general"]["rows"] > 0
    said = any("experimental" in note for note in result["data"]["notes"])
    assert said == (objective == "orpo")


@pytest.mark.parametrize("precision", ["pure", "mixed"])
@pytest.mark.parametrize("objective", ["orpo", "simpo"])
def test_pairs_train_a_module_on_a_4_bit_base_in_both_precisions(objective, precision, align):
    """What was saved is the trained model, which computes outside autocast, too."""
    result = trained(align(objective, max_steps=2, quantization="nf4", precision=precision))
    assert all(check["ok"] for check in result["checks"] if check["name"].startswith("saved"))


@pytest.mark.parametrize("objective", ["dpo", "kto"])
@pytest.mark.parametrize("update", UPDATES)
def test_the_reference_is_the_model_as_the_stage_found_it(
    objective, update, align, trained_once, tmp_path
):
    """Going on from an SFT stage, the first loss is that of two equal models, and the copy that was
    compared with is not saved.
    """
    keys = UPDATES[update]
    go_on_from(trained_once("sft", update), tmp_path)
    job = align(objective, earlier=(stage_of("sft", **keys),), **keys, job_judge=False)
    result = trained(job)
    assert losses(job)[0] == pytest.approx(math.log(2) if objective == "dpo" else 0.5, abs=1e-5)
    assert losses(job)[-1] < losses(job)[0]
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert not (job.output / "ref").exists()
    assert (
        sum(
            path.name.startswith(("adapter_model", "model"))
            for path in job.output.glob("*.safetensors")
        )
        == 1
    )


def test_a_module_that_is_merged_is_the_reference_too(align, trained_once, tmp_path):
    """Full tuning that goes on from a LoRA compares with the merged model, not with the base."""
    go_on_from(trained_once("sft"), tmp_path)
    job = align("dpo", earlier=(stage_of("sft"),), **FULL, job_judge=False)
    trained(job)
    assert losses(job)[0] == pytest.approx(math.log(2), abs=1e-5)


def test_kto_takes_answers_with_a_verdict(align, tmp_path):
    """Unpaired feedback trains, and four rows at least go through at once."""
    path = tmp_path / "feedback.jsonl"
    rows = [
        {
            "prompt": f"{QUESTIONS[number % 5]} {number}?",
            "completion": (BETTER if number % 2 else WORSE).format(number),
            "label": bool(number % 2),
        }
        for number in range(40)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = trained(align("kto", job_data=path, max_steps=10))
    assert result["evaluation"]["feedback_rows"] == 10
    assert result["evaluation"]["moved_as_judged"] > 0.6
    with pytest.raises(InputError, match="micro_batch_size: 4 or more"):
        trained(align("kto", job_data=path, micro_batch_size=2))
    path.write_text("".join(json.dumps({**row, "label": True}) + "\n" for row in rows))
    with pytest.raises(InputError, match="people liked all"):
        trained(align("kto", job_data=path))


def test_a_broken_dpo_stage_goes_on_where_it_was(align, monkeypatch):
    """Called again after a crash, it ends with the losses of an unbroken run."""
    keys = {"save_steps": 2, "max_steps": 6, "job_judge": False}
    whole = align("dpo", **keys)
    trained(whole)
    broken = align("dpo", **keys, job_run=whole.run.parent / "broken")
    break_at(5, broken, monkeypatch)
    trained(broken)
    assert losses(broken) == pytest.approx(losses(whole), rel=1e-5)


def test_one_preference_file_serves_the_whole_chain(align, trained_once, tmp_path):
    """The same file gives answers to sft, pairs to rm and dpo, prompts to rloo, whose reward is the
    rm stage before it.
    """
    sft, rm = stage_of("sft"), stage_of("rm")
    rows = go_on_from(trained_once("sft"), tmp_path)["data"]["rows"]
    assert trained(align("rm", earlier=(sft,)))["data"]["rows"] == rows
    own = {key: SHORT[key] for key in ("response_tokens", "generations", "micro_batch_size")}
    job = align("rloo", earlier=(sft, rm), max_steps=2, **own)
    assert job.entry.starts_from == "sft"
    result = trained(job)
    assert result["data"]["rows"] == rows
    assert "the reward is the model rm" in result["data"]["notes"]
    assert result["evaluation"]["metrics"]["reward"]["rows"] == 10
    assert trained(align("dpo", earlier=(sft,), job_judge=False))["data"]["rows"] == rows


# --------------------------------------------------------------------------- bad input


def test_pairs_that_teach_nothing_are_refused(align, tmp_path):
    """Identical answers are named with their rows; swapped pairs are counted in the notes."""
    same = tmp_path / "same.jsonl"
    same.write_text(
        "".join(
            json.dumps(
                {"prompt": f"Well {number}?", "chosen": "yes", "rejected": "yes "[: 3 + number % 2]}
            )
            + "\n"
            for number in range(20)
        )
    )
    with pytest.raises(InputError):
        trained(align("dpo", job_data=same))
    swapped = tmp_path / "swapped.jsonl"
    rows = [
        {
            "prompt": f"Well {number // 2}?",
            "chosen": ("yes", "no")[number % 2],
            "rejected": ("no", "yes")[number % 2],
        }
        for number in range(20)
    ]
    swapped.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = trained(align("dpo", job_data=swapped, max_steps=2, job_max_steps=2))
    assert any("20 rows contradict each other" in note for note in result["data"]["notes"])


def test_prompts_longer_than_the_limit_stop_the_run(align, tmp_path):
    """Pairs and prompts over the limit are counted and named, and what may be done is said."""
    path = tmp_path / "long.jsonl"
    path.write_text(
        "".join(
            json.dumps(
                {
                    "prompt": f"Well {number}? " + "the shop sells tea " * 30,
                    "chosen": "yes",
                    "rejected": "no",
                }
            )
            + "\n"
            for number in range(20)
        )
    )
    with pytest.raises(InputError, match="20 of 20 pairs are longer than seq_len 64"):
        trained(align("dpo", job_data=path, seq_len=64))
    (tmp_path / "own.py").write_text(REWARD)
    with pytest.raises(
        InputError,
        match="20 of 20 prompts are longer than seq_len less response_tokens, which is 58",
    ):
        trained(align("grpo", job_data=path, seq_len=64, **SHORT))
    with pytest.raises(InputError, match="leave no room for a prompt"):
        trained(align("grpo", seq_len=64, **{**SHORT, "response_tokens": 60}))


def test_an_earlier_reward_model_is_nothing_to_write_with(align, trained_once, tmp_path):
    """A stage that writes cannot start from a model that scores."""
    go_on_from(trained_once("rm"), tmp_path)
    with pytest.raises(InputError, match="scores or classifies texts and does not generate"):
        trained(align("dpo", earlier=(stage_of("rm"),), start_from="rm"))


# --------------------------------------------------------------------------- keys


OTHER_KEYS = {"beta": 0.3, "generations": 2, "response_tokens": 5, "clip_range": 0.1}
NOT_OF_THE_CONFIG = {  # of rewards: test_rewards.py; of engines: rollouts/
    "verifier",
    "pattern",
    "schema",
    "overlong_tokens",
    "ngram",
    "reward_model",
    "reward",
    "rewards",
    "rollouts",
}
CONFIGURED = [
    (name, key)
    for name in ("dpo", "kto", "orpo", "grpo", "rloo")
    for key in sorted(set(key_specs().objectives[name].keys) - NOT_OF_THE_CONFIG)
]


@pytest.mark.parametrize(("objective", "key"), CONFIGURED)
def test_every_key_reaches_the_trainer(objective, key, align, tmp_path, monkeypatch):
    """Changing this key alone changes what TRL is configured with."""
    from trainers.step import settings

    (tmp_path / "own.py").write_text(REWARD)
    seen = []
    real = settings.build_config

    def build(*args):
        seen.append(real(*args))
        raise KeyboardInterrupt  # nothing needs to be trained

    monkeypatch.setattr(settings, "build_config", build)

    def configured(**keys):
        job = align(
            objective,
            **{**(SHORT if objective in ("grpo", "rloo") else {}), **keys},
            job_dry_run=True,
        )
        with pytest.raises(KeyboardInterrupt):
            trained(job)
        return {
            name: str(value)
            for name, value in vars(seen[-1]).items()
            if name != "output_dir" and "dir" not in name
        }

    assert configured() != configured(**{key: OTHER_KEYS[key]})


def test_a_reward_that_never_differs_is_told(align, tmp_path):
    """All answers got the same: the run fails saying so, a trial only warns."""
    (tmp_path / "own.py").write_text(
        "def score(prompts, completions, **columns):\n    return [1.0] * len(completions)\n"
    )
    with pytest.raises(
        TrainingFailed, match=r"learned: reward own\.py:score never told .* apart, and gave 1 to"
    ):
        trained(align("grpo", **SHORT))


@pytest.mark.long  # four minutes; the short tests show the same of a tiny model
def test_the_real_model_learns_what_is_preferred(align, smollm, tmp_path):
    """A few dozen pairs, answers in the house's style against the same without greeting and
    signature: DPO raises the margin of unseen pairs.
    """
    demo = Path(__file__).resolve().parents[2] / "advisor" / "demo" / "support.jsonl"
    talks = [
        [turn["content"] for turn in json.loads(line)["messages"][-2:]]
        for line in demo.read_text("utf-8").splitlines()[:48]
    ]
    rows = [
        {"prompt": asked, "chosen": answer, "rejected": answer.split("! ", 1)[1].rsplit("\n", 1)[0]}
        for asked, answer in talks
        if answer.count("! ")
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    keys = {
        "rank": 8,
        "learning_rate": 2e-4,
        "max_steps": 6,
        "micro_batch_size": 2,
        "seq_len": 384,
        "holdout": 0.2,
        "scheduler": "constant",
        "warmup": 0.0,
    }
    result = trained(align("dpo", job_data=path, job_model=smollm, **keys))
    margin = result["evaluation"]["metrics"]["preference margin"]
    assert margin["interval"][0] > 0
    assert result["loss_last"] < 0.65
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]


OWN_ANSWERS = {
    "response_tokens": 4,
    "generations": 2,
    "micro_batch_size": 2,
    "max_steps": 3,
    "warmup": 0.0,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "chain",
    [
        pytest.param(("sft", "rm", "rloo"), id="by-reward-model"),
        pytest.param(
            ("sft", "rm", "orpo", "dpo", "kto", "rloo"),
            id="every-objective",
            marks=pytest.mark.long,
        ),
    ],
)
def test_advise_run_trains_a_chain_from_one_file(chain, tiny_model, pairs, tmp_path, monkeypatch):
    """Each stage in a process of its own, on one preference file, each going on from the last that
    writes; the summary shows what was measured.
    """
    from advisor.launch import Options, run_plan
    from advisor.render.report import report_page
    from advisor.render.run import summary_lines

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    common = {
        "update": "lora",
        "rank": 4,
        "learning_rate": 1e-2,
        "max_steps": 3,
        "micro_batch_size": 4,
        "seq_len": 128,
        "holdout": 0.25,
    }
    stages = [
        {"name": name, "objective": name, **common, **(OWN_ANSWERS if name == "rloo" else {})}
        for name in chain
    ]
    Path("plan.json").write_text(
        json.dumps(
            {
                "version": 1,
                "name": "chain",
                "model": str(tiny_model),
                "data": {"path": str(pairs)},
                "stages": stages,
            }
        )
    )
    done = run_plan("plan.json", Options(output="run"))
    assert done.status == "done"
    assert [stage.name for stage in done.record.stages] == list(chain)
    text = "\n".join(summary_lines(done))
    for words in ("Task     ", "Stage rm: rm+lora"):
        assert words in text, text
    report = report_page(done.record, folder=done.folder, plan_text="", metrics=())
    assert "the reward is the model rm" in report
    rm = next(stage for stage in done.record.stages if stage.name == "rm")
    assert "pair_accuracy" in rm.evaluation.metrics
    starts = {name: str(done.record.resolved[name].start_from) for name in chain}
    writing = [name for name in chain if name != "rm"]
    assert starts["rm"].endswith("sft") == (chain[0] == "sft")
    assert all(starts[later].endswith(f"stages/{earlier}") for earlier, later in pairwise(writing))


@pytest.mark.parametrize("objective", ["sft", "dpo"])
def test_a_module_on_a_4_bit_base_goes_on_from_what_was_saved(objective, align, monkeypatch):
    """TRL rounds such a module to bfloat16 as it is made; a stage that continues one begins, and
    has its reference, at the float32 weights of the file.
    """
    from safetensors.torch import load_file

    from trainers.stage import run as stage

    keys = {"quantization": "nf4", "job_judge": False}
    first = align("sft", max_steps=2, **keys)
    trained(first)
    saved = load_file(first.output / "adapter_model.safetensors")
    earlier = (stage_of("sft", quantization="nf4"),)
    second = align(objective, earlier=earlier, name="second", max_steps=2, **keys)
    seen = {}

    def begun(built):
        seen.update(
            {name: one.detach().clone() for name, one in built.trainer.model.named_parameters()}
        )
        return steps(built)

    steps = stage.train_steps
    monkeypatch.setattr(stage, "train_steps", begun)
    trained(second)
    for adapter in ("default", "ref") if objective == "dpo" else ("default",):
        for name, value in saved.items():
            path, _, last = name.rpartition(".")
            assert seen[f"{path}.{adapter}.{last}"].equal(value), (adapter, name)
