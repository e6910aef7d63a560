"""`advise check` of a run: what it learned by its log, what went wrong, and what to change."""

import json
import random
import time
from pathlib import Path

import pytest
import yaml

from advisor.commands.page_answers import pasted_name
from advisor.extras.other_tools.findings import shipped_rules
from advisor.methods.stage import Stage
from advisor.plan.keys import key_specs
from tests.conftest import ROOT, golden

NAN = float("nan")
RECORDS = ROOT / "tests" / "record" / "records"


def entries(losses, *, held_out=(), every=10, rate=2e-4, norm=1.0, epochs=3.0, **metrics):
    """The log of a run: a loss every so many steps, held-out losses evenly among them."""
    found, last = [], every * len(losses)
    for at, loss in enumerate(losses, start=1):
        step = at * every
        norms = norm[at - 1] if isinstance(norm, list) else norm
        found.append(
            {"step": step, "epoch": epochs * step / last, "loss": loss, "grad_norm": norms,
             "learning_rate": rate[at - 1] if isinstance(rate, list) else rate, **{key: values[at - 1] for key, values in metrics.items()}}
        )  # fmt: skip
    for at, loss in enumerate(held_out, start=1):
        step = last * at // len(held_out)
        found.append({"step": step, "epoch": epochs * step / last, "eval_loss": loss})
    return sorted(found, key=lambda one: one["step"])


def state(log, **more):
    """The text of a trainer_state.json."""
    done = max((one["step"] for one in log if "step" in one), default=0)
    beside = {"global_step": done, "max_steps": done, "num_train_epochs": 3, "epoch": 3.0}
    return json.dumps({"best_metric": None, **beside, "log_history": log, **more})


def noisy(values, spread=0.03, seed=0):
    """The values with the noise of batches."""
    draw = random.Random(seed)
    return [value * (1 + draw.gauss(0, spread)) for value in values]


FALLING = noisy([0.5 + 1.5 / (1 + at / 5) for at in range(40)])
FLAT = noisy([2.0] * 40)
RISING = noisy([2 - at / 10 for at in range(10)] + [1.0 + at / 10 for at in range(30)])
ONES, ZEROS = [1.0] * 40, [0.0] * 40


@pytest.fixture
def check(call, tmp_path):
    """Checks a log, or a folder; returns the learned part of the document."""

    def run(log=None, path="trainer_state.json", **more):
        if log is not None:
            Path(path).write_text(state(log, **more))
        code, out, err = call("check", path, "--json")
        assert (code, err) == (0, "")
        return json.loads(out)

    return run


def ids(document):
    return {one["id"].removeprefix("run/") for one in document["learned"]["findings"]}


def changes(document):
    return [one["set"] for one in document["learned"]["findings"] if one["set"]]


@pytest.mark.parametrize(
    ("log", "verdict", "found", "change"),
    [
        (entries(FALLING, held_out=[1.2, 1.0, 0.9, 0.89]), "better", set(), {}),
        (entries(FALLING), "better", {"never-evaluated"}, {"holdout": 0.1, "keep": "best"}),
        (entries(FALLING, held_out=[1.2, 1.0, 1.1, 1.3]), "better", {"overfits"}, {"epochs": 2, "keep": "best"}),
        (entries(FALLING, held_out=[2.2, 2.4, 2.6, 3.0]), "worse", {"overfits"}, {"epochs": 0.75, "keep": "best"}),
        (entries(FALLING, held_out=[1.2, 1.0, 0.9, 0.8]), "better", {"still-falling"}, {"epochs": 6}),
        (entries(FLAT, rate=5e-5), "not distinguishable", {"no-change"}, {"learning_rate": 0.00015}),
        (entries(FLAT), "not distinguishable", {"no-change"}, {"holdout": 0.1}),
        (entries(FALLING, norm=[2 ** (at / 5) for at in range(40)]), "better", {"gradients-grow"}, {"learning_rate": 6.67e-05}),
        (entries(FALLING, rate=[*[1e-4] * 20, *ZEROS[:20]]), "better", {"rate-ended"}, {}),
        (entries([15.0, *[20.0 + at % 9 for at in range(39)]]),
         "worse", {"above-guessing"}, {"learning_rate": 6.67e-05}),
        (entries(RISING), "worse", {"diverged"}, {"learning_rate": 6.67e-05, "warmup": 0.05}),
        (entries([*FALLING[:9], 30.0, *FALLING[10:]]), "better", {"jumps"}, {}),
        (entries(ZEROS, norm=[NAN] * 40),
         "worse", {"nan-hidden"}, {"weights_dtype": "bfloat16", "attention": "sdpa"}),
        (entries([*FALLING[:20], *[NAN] * 20]), "worse", {"nan-later"}, {"learning_rate": 6.67e-05}),
        (entries(FALLING, norm=[NAN, *ONES[1:]]), "better", {"nan-skipped"}, {}),
        (entries(ZEROS), "not distinguishable", {"nothing-trained"}, {}),
        (entries([*noisy([2 * 0.7**at for at in range(20)]), *ZEROS[:20]]),
         "better", {"all-by-heart"}, {"epochs": 1}),
        (entries(FLAT, norm=0.0), "not distinguishable", {"no-gradient"}, {}),
        (entries(FLAT, rate=0.0), "not distinguishable", {"rate-zero"}, {"warmup": 0.05}),
        (entries(FALLING, held_out=[NAN, NAN]), "better", {"nan-held-out"}, {}),
        (entries(FALLING[:3]), "better", {"few-steps"}, {"epochs": 6}),
        (entries([]), "not measured", {"nothing-logged"}, {}),
        (entries(FALLING, **{"rewards/margins": ZEROS, "rewards/accuracies": [0.5] * 40}),
         "better", {"pairs-by-chance"}, {}),
        (entries(FALLING, **{"rewards/margins": noisy(range(40)), "logps/chosen": noisy(range(-100, -140, -1)),
         "logps/rejected": noisy(range(-100, -180, -2))}),
         "better", {"pairs-both-fall"}, {}),
        (entries(ZEROS, reward=noisy([0.5] * 40), frac_reward_zero_std=[0.9] * 40),
         "not distinguishable", {"reward-flat", "rewards-equal"}, {"generations": 16}),
        (entries(ZEROS, reward=noisy([at / 40 for at in range(40)]), kl=noisy([at / 10 for at in range(40)]),
         **{"completions/clipped_ratio": [0.8] * 40}),
         "better", {"answers-cut", "kl-grows"}, {"response_tokens": 2048, "learning_rate": 6.67e-05}),
    ],
)  # fmt: skip
def test_what_a_log_shows_is_named_with_what_to_change(check, log, verdict, found, change):
    """Each state of a run has its word, its findings with their step, and lines for a plan."""
    document = check(log)
    assert document["learned"]["verdict"] == verdict
    assert found <= ids(document)
    quiet = {"never-evaluated", "best-is-gone", "by-heart", "few-steps", "nothing-logged"}
    assert ids(document) <= found | quiet
    assert ("learning_rate" in str(changes(document))) == ("learning_rate" in change)
    together = {key: value for one in reversed(changes(document)) for key, value in one.items()}
    assert change.items() <= together.items()


def test_a_document_keeps_to_its_contract(check, approved):
    """Verdict, words, steps and findings have fixed names; strings count as numbers."""
    log = entries([str(one) for one in FALLING], held_out=[1.2, 1.0, 1.1, 1.3])
    approved(check(log, max_steps=500))


def folder(steps, *, adapter=None):
    """A folder with checkpoints after these steps, each with the log up to it."""
    log = entries(FALLING, held_out=[1.2, 1.0, 1.1, 1.3])
    for step in steps:
        place = Path(f"out/checkpoint-{step}")
        place.mkdir(parents=True)
        upto = [one for one in log if one["step"] <= step]
        (place / "trainer_state.json").write_text(state(upto, max_steps=400))
        if adapter:
            (place / "adapter_config.json").write_text(json.dumps(adapter))


def test_the_newest_checkpoint_counts_and_the_best_one_is_looked_for(check):
    """A folder with checkpoints says where the best weights are; a plan begins with their base."""
    folder((100, 200, 400), adapter={"peft_type": "LORA", "base_model_name_or_path": "acme/tiny"})
    document = check(path="out")
    assert document["learned"]["best_checkpoint"] == "out/checkpoint-200"
    assert document["learned"]["steps"]["done"] == 400
    assert document["next"] == "advise --model acme/tiny --plan plan.yaml"
    Path("out/axolotl.yaml").write_text(
        "base_model: acme/tiny\ndatasets: [{path: x, type: chat}]\n"
    )
    assert check(path="out")["next"] == "advise check out/axolotl.yaml"


def test_what_the_newest_has_lost_is_taken_from_earlier_ones(check):
    """Steps before the first of the newest log come from an earlier checkpoint; a damaged state is
    named and left out.
    """
    folder((200, 400, 410))
    whole = json.loads(Path("out/checkpoint-400/trainer_state.json").read_text())
    late = [one for one in whole["log_history"] if one["step"] > 200]
    Path("out/checkpoint-400/trainer_state.json").write_text(state(late, logging_steps=10))
    Path("out/checkpoint-410/trainer_state.json").write_text('{"global_step": 410, "log_hist')
    document = check(path="out")
    assert document["learned"]["best_step"] == 200
    assert [note.partition(":")[0] for note in document["notes"]] == [
        "left out", "the steps before 210 are from checkpoint-200",
    ]  # fmt: skip


def test_of_steps_logged_twice_the_later_count(check):
    """A resumed run goes back some steps: what it had logged after them is dropped."""
    first = entries([*FALLING[:20], *[9.0] * 20])
    document = check([*first, *entries(FALLING)[20:30]], global_step=300, max_steps=300)
    assert ids(document) == {"never-evaluated"}
    assert "later entries count" in document["notes"][0]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"global_step": 1}', ["no list `log_history`"]),
        ("[1, 2]", ["no list `log_history`"]),
        ("{", ["cannot be read as JSON"]),
        ("[" * 99_999, ["cannot be read as JSON"]),
        (
            '{"global_step": -1, "log_history": [3, {"loss": "x", "step": []}]}',
            ["`global_step` is no number", "log_history[0]", "`loss` is 'x'", "`step` is '[]'"],
        ),
    ],
)
def test_faults_of_a_state_come_together(call, tmp_path, text, said):
    """What is no state of a trainer is refused with every fault and its place."""
    Path("trainer_state.json").write_text(text)
    code, _, err = call("check", "trainer_state.json")
    assert (code, all(part in err for part in said), "Traceback" in err) == (2, True, False)


def test_no_value_breaks_it(check):
    """Numbers that are huge, tiny, negative or none, in any place, give an answer."""
    check(entries([5e-324, *FALLING[1:]], held_out=[5e-324, 1.0]))
    check(entries([*FALLING, 1e29, *FALLING]))
    odd = [NAN, float("inf"), -1e308, 1e308, 5e-324, -1.0, 0.0, None, "1e999"]
    for value in odd:
        for key in ("loss", "grad_norm", "learning_rate", "epoch", "eval_loss", "reward"):
            log = entries(FALLING, held_out=[1.2, 1.0, 1.1], **{"rewards/accuracies": ONES})
            for one in log[:: 1 if value in (5e-324, 1e308) else 3]:
                one[key] = value
            check(log, num_train_epochs=2**63 - 1, best_model_checkpoint="C:\\x\\checkpoint-²")


def test_a_long_log_is_read_fast(check):
    """A hundred thousand entries take a second or two."""
    log = entries(noisy([2 / (1 + at / 1e4) for at in range(100_000)]), every=1)
    began = time.process_time()
    assert check(log)["learned"]["verdict"] == "better"
    assert time.process_time() - began < 10


def test_a_run_of_ours_that_overfits_says_from_when(check):
    """The curve of its held-out loss counts, and what its result is made of."""
    record = json.loads((RECORDS / "finished.json").read_text())
    curve = {"best_step": 20, "best_loss": 1.0, "last_step": 80, "last_loss": 1.3}
    for kept, result, change in ((20, "run/x", None), (80, None, {"keep": "best"})):
        held_out = {**curve, "kept_step": kept, "planned_steps": 90}
        record["stages"][-1] |= {"folder": "x", "held_out": held_out}
        Path("run").mkdir(exist_ok=True)
        Path("run/run.json").write_text(json.dumps(record))
        learned = check(path="run")["learned"]
        assert (learned["overfits_from_step"], learned["best_checkpoint"]) == (20, result)
        assert learned["steps"]["planned"] == 90
        (found,) = (one for one in learned["findings"] if one["id"] == "run/held-out")
        assert found["set"] == change


@pytest.mark.parametrize("name", ["finished", "failed"])
def test_a_run_of_ours_has_its_own_verdict(check, name):
    """The words are those of run.json's verdict; without a whole run, how to go on."""
    Path("run").mkdir()
    Path("run/run.json").write_bytes((RECORDS / f"{name}.json").read_bytes())
    document = check(path="run")
    assert document == {**check(path="run/run.json"), "path": "run"}
    learned = document["learned"]
    assert document["kind"] == "ours"
    if name == "finished":
        assert learned["verdict"] == "better at the task, worse in general"
        assert "general-lost" in ids(document)
    else:
        assert "not finished" in learned["words"]
        assert (learned["findings"][0]["severity"], document["next"]) == ("error", "advise run run")


def test_the_page_fits_a_screen(call, tmp_path, monkeypatch):
    """Numbers, findings, lines for a plan and one command."""
    monkeypatch.setenv("COLUMNS", "80")
    folder((200, 400))
    code, out, _ = call("check", "out")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    assert out == golden("check_run_80.txt", out)


def test_flags_of_other_files_are_refused(call, tmp_path):
    """A run has no rows, and no GPU is asked for."""
    Path("trainer_state.json").write_text(state(entries(FALLING)))
    code, _, err = call("check", "trainer_state.json", "--gpu", "A100")
    assert (code, "--gpu has no effect on a run" in err) == (2, True)


def test_every_document_of_check_says_what_was_checked(call, tmp_path):
    """Data and configurations, too."""
    Path("rows.jsonl").write_text('{"prompt": "a b", "completion": "c d"}\n' * 20)
    Path("trl.yaml").write_text("model_name_or_path: Qwen/Qwen2.5-0.5B\ndataset_name: a/b\n")
    for name, kind in (("rows.jsonl", "data"), ("trl.yaml", "configuration")):
        assert json.loads(call("check", name, "--json")[1])["checked"] == kind


def test_rules_change_keys_that_a_stage_has():
    """What is suggested can be written into a plan."""
    named = {key for rule in shipped_rules("runs") for key in rule.get("instead", {})}
    keys = {*Stage.__struct_fields__, *key_specs().names()}
    assert {key.removeprefix("plan.") for key in named} <= keys


def test_the_public_runs_are_numbered_and_judged():
    """The list of what was read: an address each, and a word that the judge is compared with."""
    runs = yaml.safe_load((ROOT / "tests/data_cases/runs.yaml").read_text())["runs"]
    assert [one["number"] for one in runs] == list(range(len(runs)))
    words = {one["human"] for one in runs}
    assert words == {"learned", "overfits", "nothing", "diverged", "unknown"}
    assert all(one["address"].startswith("https://") for one in runs)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "verdict", "found"),
    [
        ({"learning_rate": 3e-3}, "better", set()),
        ({"learning_rate": 1e-2, "num_train_epochs": 40}, "worse", {"overfits"}),
        ({"learning_rate": 1.0, "max_grad_norm": 0.0}, "worse", {"above-guessing"}),
        ({"learning_rate": 1e25}, "worse", {"nan-later"}),
        ({"masked": True}, "not distinguishable", {"nothing-trained", "nan-held-out"}),
        ({"learning_rate": 1e-9}, "not distinguishable", {"rate-low"}),
    ],
)
def test_real_runs_are_judged(tiny_model, check, capsys, settings, verdict, found):
    """Logs of transformers' own Trainer, in each state that a run can be in."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    from tests.conftest import CORPUS

    settings = dict(settings)
    tokenizer, masked = AutoTokenizer.from_pretrained(tiny_model), settings.pop("masked", False)
    texts = [f"{text} Number {at}." for at in range(24) for text in CORPUS]
    rows = []
    for text in texts:
        tokens = tokenizer(text, truncation=True, max_length=24, padding="max_length")["input_ids"]
        rows.append({"input_ids": tokens, "labels": [-100] * 24 if masked else tokens})
    if settings.get("num_train_epochs"):
        draw = torch.Generator().manual_seed(0)
        rows = [
            dict.fromkeys(("input_ids", "labels"), torch.randint(9, 300, (24,), generator=draw).tolist())
            for _ in range(24)
        ]  # fmt: skip
    arguments = TrainingArguments(
        "out", per_device_train_batch_size=4, num_train_epochs=settings.pop("num_train_epochs", 6),
        logging_steps=2, eval_strategy="epoch", save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, lr_scheduler_type="constant", **settings,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    trainer = Trainer(model, arguments, train_dataset=rows[8:], eval_dataset=rows[:8])
    trainer.train()
    trainer.save_state()
    trainer.save_model()
    capsys.readouterr()  # progress bars
    document = check(path="out")
    assert document["learned"]["verdict"] == verdict
    assert found <= ids(document)


ENTRIES = [f"{{'loss': {one:.4f}, 'learning_rate': 2e-4, 'epoch': 0.1}}" for one in FALLING]
PRINTED = {  # what is printed -> how far it went, None: it does not say
    "dictionaries": ("\n".join(ENTRIES), None),
    "values in quotes": ("\n".join(ENTRIES).replace(": ", ": '").replace(",", "',").replace("}", "'}"), None),
    "a progress bar": (
        "".join(
            f"\r {at:2}%|█  | {at * 10}/400 [00:10<03:20, 1.9it/s]{one}\n\r100%|██| 7/7 [00:01<00:00, 7.0it/s]\n"
            for at, one in enumerate(ENTRIES, start=1)
        ),
        400,
    ),
    "a table of a notebook": (
        "Step\tTraining Loss\n" + "\n".join(f"{at * 10}\t{one}" for at, one in enumerate(FALLING, 1)),
        400,
    ),
    "a loop of one's own": ("\n".join(f"step {at * 10}: loss {one}, lr 2e-4" for at, one in enumerate(FALLING, 1)), 400),
}  # fmt: skip


@pytest.mark.parametrize("case", PRINTED)
def test_what_a_trainer_printed_is_a_run(check, call, tmp_path, case):
    """Its losses count as those of trainer_state.json do, and the error that it ended with is named."""
    text, done = PRINTED[case]
    assert pasted_name(text) == "error.txt"
    error = "Traceback (most recent call last):\n  ...\nRuntimeError: device-side assert"
    for name, ending in {"train.log": "", "error.txt": f"\n{error}\n"}.items():
        (tmp_path / name).write_text(text + ending)
        found = check(path=str(tmp_path / name))
        assert found["learned"]["verdict"] == "better"
        assert found["learned"]["steps"]["done"] == done
        assert ("few-steps" in ids(found)) is False
        assert any("RuntimeError" in one for one in found["notes"]) is bool(ending)
    (tmp_path / "error.txt").write_text(error)
    assert "RuntimeError: device-side assert" in check(path=str(tmp_path / "error.txt"))["summary"]
    (tmp_path / "text.txt").write_text(error + "\nHow to read it.\n" * 999)  # it is about errors
    assert check(path=str(tmp_path / "text.txt"))["checked"] == "data"
