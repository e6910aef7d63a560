"""Every long part says how far it is, and the plan's trackers have what metrics.jsonl has."""

import json
import time
from collections import defaultdict
from dataclasses import replace
from itertools import pairwise
from unittest.mock import Mock, call

import pytest
from msgspec import structs

pytest.importorskip("torch")

import transformers

from advisor.extras.trackers.extra import TrackerKeys, tracker_faults
from advisor.ground.progress import BYTES, board, track
from tests.trainers.alignment import SHORT
from tests.trainers.conftest import waits_heard
from tests.trainers.runs import break_at, metrics, trained, write_rows
from trainers import sft
from trainers.job.libraries import quiet_libraries, watch_downloads, watch_loading
from trainers.keep import progress as trackers
from trainers.keep.progress import ABOUT, Trackers, stage_settings
from trainers.rows.stage_rows import CHUNK_EXAMPLES
from trainers.say.progress import BEFORE, LOAD, TRAIN, Parts

# Every objective measures before and after, and trains.
ALWAYS = {
    "loading rows and model",
    "reading and tokenising",
    "reading weights",
    "training",
    "saving the result",
    "checking the saved result",
}
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
    assert after == expected(job)
    assert [step for step, _ in after["loss"]] == [1, 2, 3, 4]
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
