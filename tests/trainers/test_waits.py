"""While a stage runs: how far each part is, what trackers get, held-out loss and what follows."""

import json
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from unittest.mock import Mock, call

import pytest
from msgspec import structs

pytest.importorskip("torch")

import math
import random
from types import SimpleNamespace

import transformers

from advisor.extras.trackers.extra import TrackerKeys, tracker_faults
from advisor.ground.progress import BYTES, board, track
from tests.trainers.alignment import SHORT
from tests.trainers.conftest import waits_heard
from tests.trainers.runs import (
    break_at,
    chat,
    look_before,
    losses,
    metrics,
    plain_loss,
    result_of,
    same,
    trained,
    weights,
    write_rows,
)
from trainers import sft
from trainers.job.libraries import quiet_libraries, watch_downloads, watch_loading
from trainers.keep import progress as trackers
from trainers.keep.progress import ABOUT, Trackers, stage_settings
from trainers.rows.stage_rows import CHUNK_EXAMPLES
from trainers.say.progress import BEFORE, LOAD, TRAIN, Parts

torch = pytest.importorskip("torch")
from peft import AutoPeftModelForCausalLM
from transformers import TrainerCallback

from advisor.ground.errors import TrainingFailed
from trainers.job.files import read_json
from trainers.keep.held_out_curve import (
    HeldOutCurve,
    Schedule,
    even_batch,
    even_count,
    forward_share,
    schedule,
)
from trainers.stage.load import build_trainer, load_stage, prepare
from trainers.stage.trl_trainer import SFT
from trainers.step import settings

# Every objective measures before and after, and trains.
ALWAYS = {
    "loading rows and model", "reading and tokenising", "reading weights", "training",
    "saving the result", "checking the saved result",
}  # fmt: skip
ANSWERS = {"sample answers", "generating answers"}


def check(waits, *names):
    """Each wait was heard without long jumps up to its end: wait -> (how far, of how many)."""
    heard = defaultdict(list)
    for what, done, total in waits:
        heard[what].append((done, total))
    assert set(names) - set(heard) == set()
    for what, seen in heard.items():
        jumps = [after - before for (before, _), (after, _) in pairwise(seen)]
        # Items between two signs of life.
        longest = CHUNK_EXAMPLES if what == "reading and tokenising" else 32
        assert max(jumps, default=0) <= longest, what
    counted = {what for what, seen in heard.items() if any(total for _, total in seen)}
    assert counted >= {"training", "reading weights"}
    for what in counted - {"generating answers", "learning from the answers", "this step"}:
        assert any(done == total for done, total in heard[what]), what
    return heard


@pytest.mark.parametrize(
    ("objective", "own"),
    [
        ("dpo", {"losses"}),
        ("kto", {"losses"}),
        ("orpo", {"losses"}),
        ("rm", {"scores"}),
        ("grpo", ANSWERS),
        ("rloo", ANSWERS),
    ],
)
def test_an_objective_shows_each_of_its_parts(objective, own, trained_once):
    """Rows, weights, the model before, the steps, the result."""
    heard = trained_once(objective).run.parent / "heard.json"
    check(json.loads(heard.read_text()), *ALWAYS, *own)


ASKED = [{"prompt": f"Where is order {n}?", "ground_truth": "1"} for n in range(40)]
LABELS = [
    {"text": f"order {n} is {'late' if n % 2 else 'here'}", "label": n % 2} for n in range(40)
]
OF_A_CHAT = {"losses", "held-out rows", "general prompts", "held-out loss", "this step"}
LONG = {"grad_accum": 4, "micro_batch_size": 1, "early_stopping": 9}  # held-out loss on the way


@pytest.mark.parametrize(
    ("objective", "keys", "rows", "names"),
    [
        # A step of many micro-batches may take minutes.
        ("sft", LONG, None, ALWAYS | ANSWERS | OF_A_CHAT),
        # A classifier writes nothing.
        ("sft", {"head": "classes", "holdout": 0.2}, LABELS, {"predictions"}),
        # Before training, block by block.
        ("distill", {"holdout": 0.2, "response_tokens": 6}, ASKED,
         {"answers of the teacher", "generating answers", "distance to the teacher"}),
        # Answers, scores, probabilities and minibatches of an update of 64 prompts.
        (
            "ppo",
            {key: SHORT[key] for key in ("response_tokens", "reward")},
            None,
            {
                "generating answers",
                "probabilities under the policy",
                "probabilities under the reference model",
                "values",
                "learning from the answers",
                *(ALWAYS - {"reading weights"}),
            },
        ),
    ],
    ids=["chat", "classes", "distill", "ppo"],
)  # fmt: skip
def test_what_may_take_minutes_is_shown(objective, keys, rows, names, align, tiny_model, tmp_path):
    """Each part of a stage that does something of its own."""
    if rows:
        keys = {**keys, "job_data": write_rows(tmp_path / "rows.jsonl", rows)}
    if objective == "distill":
        keys = {**keys, "teacher": str(tiny_model)}
    with waits_heard() as waits:
        trained(align(objective, **keys, max_steps=2))
    heard = check(waits, *names)
    assert "early_stopping" not in keys or (3, 4) in heard["this step"]
    answers = {done for done, total in heard["generating answers"] if total}
    assert objective != "ppo" or len(answers) > 2


def test_a_part_is_said_and_is_a_wait(capsys):
    """What goes on inside it is a wait inside; the steps are a wait of their own."""
    with Parts("sft", shown=True) as parts:
        parts.begin(LOAD)
        assert [wait.what for wait in board.waits] == ["loading rows and model"]
        parts.begin(BEFORE)
        for _ in track([1, 2, 3], "losses"):
            told = ["measuring the model before training", "losses"]
            assert [wait.what for wait in board.waits] == told
            time.sleep(0.02)
        parts.begin(TRAIN)
        assert board.waits == []
    said = capsys.readouterr().err
    assert said == "sft: loading rows and model\nsft: measuring the model before training\n"
    assert parts.times().before_s >= 0.06
    with Parts("sft", shown=False) as parts:  # another process than the main one
        parts.begin(LOAD)
    assert capsys.readouterr().err == ""


def test_an_error_leaves_no_wait_behind():
    """Nothing is shown once the stage has ended, however it did."""
    with pytest.raises(ValueError, match="in the midst"), Parts("sft", shown=True) as parts:  # noqa: PT012
        parts.begin(BEFORE)
        for place in track(range(0, 16, 4), "sample answers", each=4, of=16):
            if place == 8:
                raise ValueError("in the midst")
    assert board.waits == []


@pytest.fixture
def bars():
    """A class of bars as the hub has it, watched."""
    from huggingface_hub.utils import tqdm

    class Bars(tqdm):
        if getattr(tqdm, "is_watched", False):  # by a test before this one: its own counts as well
            __init__ = tqdm.__init__.__wrapped__

    Bars.is_watched = False
    watch_downloads(Bars)
    return Bars


def test_files_that_come_at_the_same_time_are_one_wait(bars):
    """In bytes, with those of an earlier attempt; the hub counts compressed bytes beside them."""
    first = bars(unit="B", total=100, initial=40, desc="a.safetensors", disable=True)
    packed = bars(unit="B", total=70, desc="Downloading bytes", disable=True)
    second = bars(unit="B", total=60, desc="b.safetensors", disable=True)
    packed.update(9)
    first.update(10)
    second.update(5)
    (wait,) = board.waits
    assert (wait.done, wait.total, wait.unit) == (55, 160, BYTES)
    first.close()
    assert board.waits == [wait]
    second.total = 80
    second.update(75)
    assert (wait.done, wait.total) == (130, 180)
    second.close()
    packed.close()
    assert list(bars([1, 2], desc="Fetching 2 files", disable=True)) == [1, 2]  # no download
    assert board.waits == []


def test_the_libraries_are_watched_once_they_are_quiet():
    """The classes and hooks are there in the versions that are installed."""
    import huggingface_hub.utils

    quiet_libraries()
    assert huggingface_hub.utils.tqdm.is_watched
    assert transformers.utils.logging.set_tqdm_hook(watch_loading) is watch_loading


KEYS = {"max_steps": 4, "save_steps": 2, "job_judge": False}


def tracked(job, *names):
    return replace(
        job, plan=structs.replace(job.plan, extras={"trackers": TrackerKeys(trackers=names)})
    )


def numbers(line):
    """What a tracker has to get of a line of metrics.jsonl."""
    return {key: one for key, one in line.items() if key not in ABOUT and one is not None}


def expected(job):
    """Name -> [(step, number)] of metrics.jsonl, as event files hold them: in 32 bits."""
    found = {}
    for line in metrics(job):
        for key, value in numbers(line).items():
            found.setdefault(key, []).append((line["step"], pytest.approx(value, rel=1e-6)))
    return found


def events(job):
    """The same of the event files, as TensorBoard's own reader sees them."""
    reader = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs tensorboard"
    )
    folder = job.run / "trackers" / "tensorboard" / "sft"
    found = reader.EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    scalars = found.Tags()["scalars"]
    return {tag: [(one.step, one.value) for one in found.Scalars(tag)] for tag in scalars}


def test_tensorboard_has_the_numbers_of_metrics_also_after_a_crash(make, monkeypatch):
    """Each step is in the one run once, as metrics.jsonl has it; a dry run leaves nothing."""
    pytest.importorskip("tensorboard", reason="needs tensorboard")
    job = tracked(make(**KEYS), "tensorboard")
    sft.train(replace(job, dry_run=True))
    assert not (job.run / "trackers").exists()
    break_at(3, job, monkeypatch)
    assert [step for step, _ in events(job)["loss"]] == [1, 2, 3]
    sft.train(job)
    after = events(job)
    assert (after, [step for step, _ in after["loss"]]) == (expected(job), [1, 2, 3, 4])
    (kept,) = (job.run / "trackers" / "tensorboard" / "sft").rglob("hparams.yml")
    said = kept.read_text()  # once, not with each attempt
    assert [one for one in ("learning_rate: 0.01", "rank") if one not in said] == []
    assert [one for one in (job.data_path, job.plan.model) if str(one) in said] == []


@pytest.mark.long
def test_wandb_offline_has_the_numbers_of_metrics_also_after_a_crash(make, monkeypatch):
    """Both attempts are one wandb run, kept in the run folder, without anything of the machine."""
    pytest.importorskip("wandb", reason="needs wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    job = tracked(make(**KEYS), "wandb")
    break_at(3, job, monkeypatch)
    sft.train(job)
    first, second = folders = sorted((job.run / "trackers" / "wandb").glob("offline-run-*"))
    assert first.name.rpartition("-")[2] == second.name.rpartition("-")[2], "one run"
    found, codes = {}, []
    for folder in folders:
        told, config, kinds, code, content = read_wandb(folder)
        found |= told
        codes.append(code)
        assert str(job.folder).encode() not in content
        assert kinds.isdisjoint({"stats", "output", "output_raw", "files", "environment"}), kinds
        assert "learning_rate" in config
        assert "data" not in config
    assert codes == [1, 0], "the crash is marked as one"
    steps = {line["step"]: line for line in metrics(job)}
    assert sorted(found) == sorted(steps)
    for step, told in found.items():
        other = {"elapsed_s": told["elapsed_s"]} if step == 3 else {}
        assert told == numbers(steps[step]) | other


def read_wandb(folder):
    """(step -> numbers, names of settings, kinds of records, exit code, bytes) of a run."""
    from wandb.proto import wandb_internal_pb2 as records

    (path,) = folder.glob("*.wandb")
    content = path.read_bytes()
    numbers, config, kinds, code = {}, set(), set(), None
    for data in blocks(content[7:], taken=7):
        record = records.Record()
        record.ParseFromString(data)
        kinds.add(record.WhichOneof("record_type"))
        assert not record.run.host
        if record.HasField("exit"):
            code = record.exit.exit_code
        config |= {update.key for update in record.run.config.update}
        values = {
            item.key or ".".join(item.nested_key): json.loads(item.value_json)
            for item in record.history.item
        }
        if "loss" in values:
            own = {key: value for key, value in values.items() if not key.startswith("_")}
            numbers[record.history.step.num or values["_step"]] = own
    return numbers, config, kinds, code, content


def blocks(content, taken):
    """Records of a log in LevelDB's format: blocks of 32 KiB, where kind 1 or 4 ends a record."""
    place, parts = 0, b""
    while place + 7 <= len(content):
        left = 2**15 - (place + taken) % 2**15
        if left < 7:
            place += left
            continue
        length = int.from_bytes(content[place + 4 : place + 6], "little")
        kind = content[place + 6]
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):
            yield parts
            parts = b""


@pytest.mark.light
def test_a_tracker_that_fails_is_left_out_and_the_stage_goes_on(make, monkeypatch, capsys):
    """Whatever a service raises is said once; a service that works gets everything."""
    broken, kept = Mock(**{"log.side_effect": OSError("no route to host")}), Mock()
    kinds = {"wandb": broken, "tensorboard": kept}
    monkeypatch.setattr(trackers, "open_tracker", lambda job, name, after: kinds[name])
    found = Trackers(tracked(make(), "wandb", "tensorboard"))
    for step in (1, 2):
        found.log({"stage": "sft", "task": None, "step": step, "steps": 2, "loss": 0.5}, after=0)
    found.close()
    logged = [call.log({"loss": 0.5}, step=step) for step in (1, 2)]
    assert kept.method_calls == [*logged, call.finish()]
    said = capsys.readouterr().err
    assert said.count("no route to host") == 1
    assert "wandb gets nothing more of this stage" in said


@pytest.mark.light
def test_a_tracker_learns_nothing_of_data_or_folders(make):
    """Its settings name the model's folder alone, and no data."""
    job = make(rank=4)
    found = stage_settings(job)
    assert found["model"] == job.plan.model.rpartition("/")[2]
    assert (found["rank"], found["learning_rate"], found["update"]) == (4, 1e-2, "lora")
    assert not {"data", "start_from"} & set(found)
    assert str(job.folder) not in json.dumps(found)


@pytest.mark.light
def test_what_a_tracker_lacks_is_said_before_a_run(tmp_path, monkeypatch):
    """A missing package or login is told with what to do about it, without the network."""
    names = ("tensorboard", "wandb")
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_IDENTITY_TOKEN_FILE", "NETRC"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    for installed, what, hint in (
        (False, "tensorboard and wandb are not installed", "[trackers]"),
        (True, "has no login", "WANDB_MODE=offline"),
    ):
        is_installed = "advisor.extras.trackers.extra._is_installed"
        monkeypatch.setattr(is_installed, lambda name, found=installed: found)
        (fault,) = tracker_faults(names)
        assert what in fault.what
        assert hint in fault.hint
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password x\n")
    assert list(tracker_faults(names)) == []
    (tmp_path / ".netrc").unlink()
    monkeypatch.setenv("WANDB_MODE", "offline")
    assert list(tracker_faults(names)) == []


BRIEF = {"max_steps": 4, "holdout": 0.2, "job_judge": False}
# Six rows that have nothing in common with the four held out: seen 13 times, they are learned by
# heart, and the loss of the others rises.
OVERFIT = {
    "update": "full", "learning_rate": 0.01, "scheduler": "constant", "warmup": 0.0,
    "max_steps": 20, "holdout": 0.4, "job_judge": False,
}  # fmt: skip


@pytest.fixture
def overfit(make, tmp_path):
    """A job whose held-out loss falls first, and then rises."""
    draw = random.Random(5)  # a clear minimum, on the kernels of any processor
    rows = [chat(f"order {n}?", "".join(draw.choices("abcdefgh", k=12))) for n in range(10)]
    data = write_rows(tmp_path / "letters.jsonl", rows)
    return lambda **keys: make(**{**OVERFIT, "job_data": data, **keys})


def curve_of(job):
    """(step, held-out loss) of every evaluation."""
    return [(line["step"], line["holdout_loss"]) for line in metrics(job) if "holdout_loss" in line]


@pytest.mark.parametrize(
    ("rows", "steps", "tokens", "is_wanted", "found"),
    [
        # 10 x 48 rows x 100 tokens x 1/2 is less than a twentieth of 500,000 tokens, 52 rows more.
        ([100] * 400, 1000, 500_000, False, (100, 48, 0.048)),
        # All of them where they cost less: 10 x 20 x 100 / 2 of 500,000.
        ([100] * 20, 1000, 500_000, False, (100, 20, 0.02)),
        ([100] * 4000, 1000, 100_000_000, False, (100, 256, 256 * 10 * 50 / 100_000_000)),
        # Fewer evaluations of 8 rows where the run is short: 5 x 8 x 50 of 40,000 tokens.
        ([100] * 400, 100, 40_000, False, (20, 8, 0.05)),
        # And three of 4 rows: 3 x 4 x 50 of 12,000.
        ([100] * 400, 100, 12_000, False, (34, 4, 0.05)),
        # Three evaluations of four rows must have room in 5 %, or the plan must need them.
        ([100] * 50, 20, 5_000, False, None),
        ([100] * 50, 20, 5_000, True, (2, 8, 0.8)),
        ([1] * 3, 20, 5_000, False, None),
        ([], 20, 5_000, True, None),
    ],
)
def test_ten_evaluations_take_a_twentieth_of_the_time_at_most(
    rows, steps, tokens, is_wanted, found
):
    """A short run evaluates less often, and a shorter one only if the plan asks."""
    rows = [SimpleNamespace(tokens=count) for count in rows]
    keys = {"forward": 0.5, "micro": 4, "wanted": is_wanted}
    expected = found and Schedule(*found[:2], pytest.approx(found[2]))
    assert schedule(rows, steps=steps, trained_tokens=tokens, **keys) == expected


def test_looking_costs_a_third_of_full_training_and_more_beside_a_reference(make, align):
    """A forward pass is a third of training, half with a module; DPO's reference runs in both."""
    jobs = {
        "full": make(update="full"), "lora": make(), "dpo": align("dpo", update="full"),
        "recomputed": make(update="full", gradient_checkpointing=True),
    }  # fmt: skip
    assert {name: forward_share(job) for name, job in jobs.items()} == pytest.approx(
        {"full": 1 / 3, "lora": 1 / 2, "dpo": 2 / 4, "recomputed": 1 / 4}
    )


@pytest.mark.parametrize(
    ("rows", "micro", "processes", "count", "batch"),
    [(6, 4, 1, 6, 3), (7, 4, 1, 6, 3), (20, 8, 1, 20, 5), (251, 4, 1, 249, 3), (16, 4, 2, 16, 4),
     (10, 4, 2, 8, 4), (3, 8, 1, 3, 3), (1, 8, 2, 1, 1)],
)  # fmt: skip
def test_every_process_has_full_micro_batches(rows, micro, processes, count, batch):
    """Full micro-batches of one size make the mean of their losses that of the rows."""
    assert even_count(rows, micro, processes) == count
    assert even_batch(count // processes, micro) == batch


def test_measuring_leaves_no_trace_in_the_training(make, tmp_path):
    """Weights and losses are equal to the bit, with dropout; plain PEFT gives the last value."""
    plain = make(**BRIEF, dropout=0.2)
    watched = make(**BRIEF, dropout=0.2, early_stopping=50, job_run=tmp_path / "watched")
    for job in (plain, watched):
        trained(job)
    assert (curve_of(plain), [step for step, _ in curve_of(watched)]) == ([], [1, 2, 3, 4])
    assert losses(plain) == losses(watched)
    assert same(weights(plain), weights(watched))
    model = AutoPeftModelForCausalLM.from_pretrained(watched.output, dtype=torch.float32)
    _, data = prepare(watched, sft.SFT())
    total = sum(plain_loss(model, row) * row.learned for row in data.holdout)
    assert len(data.holdout) == result_of(watched)["held_out"]["rows"] == 6
    assert curve_of(watched)[-1][1] == pytest.approx(
        total / sum(row.learned for row in data.holdout), rel=1e-5
    )


@pytest.mark.parametrize("objective", ["dpo", "kto", "rm", "orpo"])
def test_pairs_are_measured_by_their_own_loss_without_a_trace(objective, align, trained_once):
    """TRL's statistics of training stay; DPO and KTO begin at the loss of their own reference."""
    job = align(objective, early_stopping=50, job_judge=False)
    trained(job)
    plain = trained_once(objective)
    curve = curve_of(job)
    own = {"holdout_loss", "elapsed_s", "memory_bytes", "tokens_per_s"}
    assert ([step for step, _ in curve], curve_of(plain)) == ([1, 2, 3, 4, 5, 6], [])
    mine, theirs = (
        [{key: line[key] for key in line.keys() - own} for line in metrics(one)]
        for one in (job, plain)
    )
    assert mine == theirs
    assert same(weights(job), weights(plain))
    if objective in ("dpo", "kto"):
        assert curve[0][1] == pytest.approx({"dpo": math.log(2), "kto": 0.5}[objective], abs=0.1)


def test_the_best_weights_become_the_result(overfit, monkeypatch, capsys):
    """`keep: best` goes back to the lowest loss; each evaluation has a line in metrics.jsonl."""
    job = overfit(keep="best", trl={"logging_steps": 7})
    seen = {}
    look_before(monkeypatch, SFT, "evaluate", lambda trainer, **_: seen.update({
        trainer.state.global_step: {
            name: part.detach().clone() for name, part in trainer.model.named_parameters()
        }
    }))  # fmt: skip
    trained(job)
    curve = dict(curve_of(job))
    best = min(curve, key=curve.get)
    assert list(curve) == list(range(2, 21, 2))
    assert 2 < best < 20
    saved = weights(job)
    assert all(saved[name].equal(part) for name, part in seen[best].items() if name in saved)
    assert not all(saved[name].equal(part) for name, part in seen[20].items() if name in saved)
    held = result_of(job)["held_out"]
    assert (held["kept_step"], held["best_step"], held["best_loss"]) == (best, best, curve[best])
    assert held["last_loss"] == curve[20] > curve[best]
    assert f"checkpoint-{best}" in [path.name for path in job.checkpoints.iterdir()]
    assert f"the weights of step {best} are the result" in capsys.readouterr().err


def test_training_stops_when_the_held_out_loss_does(overfit, capsys):
    """`early_stopping: 2` ends after two evaluations that are not lower; the last weights stay."""
    job = overfit(early_stopping=2)
    result = trained(job)
    steps, values = zip(*curve_of(job), strict=True)
    # The rule, on the values as they were written: two in a row are not below all before them.
    tries = (
        at for at in range(2, len(values)) if min(values[at - 1 : at + 1]) >= min(values[: at - 1])
    )
    expected = steps[next(tries)]
    assert steps[-1] == metrics(job)[-1]["step"] == expected < 20
    held = result["held_out"]
    assert (held["stopped_early"], held["waited"], held["planned_steps"]) == (True, 2, 20)
    assert result["steps"] == held["kept_step"] == expected
    said = capsys.readouterr().err
    assert f"stopped early after step {expected} of 20" in said
    assert "the last weights are the result" in said


def test_a_run_resumes_with_its_best_step_and_its_patience(overfit, monkeypatch, tmp_path):
    """A killed run ends as one that was not, also past its best step or without a result."""
    keys = {"keep": "best", "early_stopping": 2, "save_steps": 5}
    whole, early, late = (overfit(**keys, job_run=tmp_path / name) for name in "abc")
    trained(whole)
    held = result_of(whole)["held_out"]
    assert held["stopped_early"]
    break_at(held["best_step"], early, monkeypatch)
    trained(early)
    with monkeypatch.context() as patch:
        patch.setattr(sft.SFT, "save", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sft.train(late)
    monkeypatch.setattr(HeldOutCurve, "add", lambda *_: pytest.fail("trained again"))
    trained(late)
    for killed in (early, late):
        assert curve_of(killed) == curve_of(whole)
        assert same(weights(killed), weights(whole))
        assert result_of(killed)["held_out"] | {"seconds": 0} == held | {"seconds": 0}
        assert result_of(killed)["steps"] == held["last_step"]


def test_held_out_labels_are_counted_once(make, monkeypatch):
    """From the second evaluation on each held-out row is read once, for its loss."""
    read = []
    look_before(monkeypatch, sft, "dataset_columns", lambda rows, **_: read.extend(rows))
    loaded = load_stage(make(holdout=0.2), sft.SFT(), Parts("sft", shown=False))
    held, callback = loaded.data.holdout[:4], TrainerCallback()
    callback.store = None  # no checkpoints
    trainer = build_trainer(loaded, loaded.sequences, steps=1, callback=callback, held_out=held)
    first = trainer.evaluate()["eval_loss"]
    read.clear()
    assert trainer.evaluate()["eval_loss"] == first
    assert len(read) == len(held) == 4


GPU, CPU = torch.device("cuda", 0), torch.device("cpu")


@pytest.mark.parametrize(
    ("device", "lines"),
    [
        (CPU, {3: 1, 5000: 1, 20_000: 4, 1_000_000: 200}),
        (GPU, {3: 1, 60: 1, 300: 6, 600: 10, 5000: 10, 20_000: 10, 1_000_000: 200}),
    ],
)
def test_a_gpu_is_asked_for_a_line_every_few_steps(device, lines):
    """A run on a GPU has at least fifty lines or all its steps, and any log is of bounded size."""
    assert {steps: settings.log_every(device, steps) for steps in lines} == lines


def test_a_gpu_gets_its_batches_from_other_processes(monkeypatch):
    """Two per process where there are cores; none on the CPU, or for rows that travel by pickle."""
    monkeypatch.setattr(settings, "usable_cores", lambda: 16)
    monkeypatch.setattr(settings.multiprocessing, "get_start_method", lambda: "fork")
    assert (settings.loader_workers(GPU), settings.loader_workers(CPU)) == (2, 0)
    monkeypatch.setenv("WORLD_SIZE", "16")
    assert settings.loader_workers(GPU) == 0
    monkeypatch.setenv("WORLD_SIZE", "1")
    monkeypatch.setattr(settings.multiprocessing, "get_start_method", lambda: "forkserver")
    assert settings.loader_workers(GPU) == 0


def like_a_gpu(monkeypatch):
    """A line every third step and two loader processes, as a longer run on a GPU has them."""
    monkeypatch.setattr(settings, "log_every", lambda device, steps: 3)
    monkeypatch.setattr(settings, "loader_workers", lambda device: 2)


def test_lines_of_several_steps_are_their_means_and_resume_equal(make, monkeypatch, tmp_path):
    """The clock and its parts go on over an interruption, and weights are the same to the bit."""
    keys = {"max_steps": 6, "save_steps": 4, "dropout": 0.1, "job_judge": False}
    single = make(**keys, job_run=tmp_path / "single")
    monkeypatch.setattr("trainers.keep.progress.KEPT_LOGS", 2)
    sft.train(single)
    state = read_json(single.checkpoints / "checkpoint-6" / "trainer_state.json")
    assert len(state["log_history"]) <= 2, "metrics.jsonl has them all"
    like_a_gpu(monkeypatch)
    job = make(**keys, job_run=tmp_path / "interrupted")
    break_at(6, job, monkeypatch)
    found = trained(job)
    assert [line["step"] for line in metrics(job)] == [1, 3, 4, 5, 6]
    each = losses(single)
    assert losses(job) == pytest.approx([each[0], sum(each[1:3]) / 2, *each[3:]], abs=1e-6)
    assert (found["loss_first"], found["loss_last"]) == pytest.approx((each[0], each[5]), abs=1e-6)
    clock = [line["elapsed_s"] for line in metrics(job)]
    assert clock == sorted(clock)
    assert found["measured"]["train_s"] >= clock[-1]
    parts = [found["times"][part] for part in ("load_s", "before_s", "train_s", "after_s")]
    assert min(parts) > 0
    assert found["times"]["total_s"] == pytest.approx(sum(parts), abs=0.01)
    assert same(weights(single), weights(job))


def test_a_loss_that_is_not_finite_between_two_lines_is_noticed(make, monkeypatch):
    """It stops the run at the next line, which comes before the next checkpoint is written."""
    like_a_gpu(monkeypatch)
    factors, compute_loss = iter([1, math.nan, 1]), SFT.compute_loss

    def broken(*args, **kwargs):
        return compute_loss(*args, **kwargs) * next(factors)

    monkeypatch.setattr(SFT, "compute_loss", broken)
    job = make(max_steps=6, save_steps=6, job_judge=False)
    with pytest.raises(TrainingFailed, match=r"the loss became nan in steps 2 to 3; nothing was"):
        sft.train(job)
    assert not list(job.checkpoints.glob("*"))
