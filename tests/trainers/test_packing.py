"""Packed rows come out as they do alone; rows are built by one process or several, and read from the disk."""

import random
from dataclasses import fields, replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")


import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import transformers
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer, Gemma3TextConfig, LlamaConfig
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from advisor.data import read_examples, recognise
from advisor.data.example import Example
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import Disk
from tests.conftest import ROOT, examples
from tests.trainers.fitting import in_memory, sequence
from tests.trainers.pretend_gpu import GPU, pretend_gpu
from tests.trainers.runs import chat, write_rows
from trainers.job.machine import ConnectionLost, others_wait_for, wait_for
from trainers.rows import (
    ANSWERS,
    IGNORED,
    Kind,
    PackedBatches,
    Prepared,
    Row,
    Templater,
    dataset_columns,
    pack,
    sequences,
)
from trainers.rows import stage_rows as preparing
from trainers.rows.conversation import PROMPTS
from trainers.rows.packing import check_packing, leak, packed_logits
from trainers.rows.preference import FEEDBACK, PAIRS
from trainers.rows.row import LeftOut, Limits, cut_row, ids_of
from trainers.rows.sequences import StoredRows, lengths, rows_dataset, values_of
from trainers.rows.stage_rows import Preparation, prepare_rows
from trainers.start import kernels as attention
from trainers.start import loading
from trainers.start.kernels import first_layers, unpacked_if_seen
from trainers.start.loading import load_tokenizer

SMALL = {
    "vocab_size": 96, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip
WINDOW = {"sliding_window": 4}
TINY = {
    "llama": ("LlamaConfig", SMALL),
    "mistral": ("MistralConfig", SMALL | WINDOW),
    "qwen3": ("Qwen3Config", SMALL | {"head_dim": 8}),
    "gemma3": (
        "Gemma3TextConfig",
        {**SMALL, **WINDOW, "head_dim": 8, "query_pre_attn_scalar": 8, "num_hidden_layers": 6},
    ),
    "phi3": ("Phi3Config", SMALL | {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}),
    "gpt2": (
        "GPT2Config",
        {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 128},
    ),
}


def tiny(name: str, attention: str = "sdpa"):
    config_name, values = TINY[name]
    torch.manual_seed(0)
    config = getattr(transformers, config_name)(**values)
    kind = transformers.AutoModelForCausalLM
    return kind.from_config(config, attn_implementation=attention).eval()


def rows_of(lengths, seed: int = 0) -> list[Row]:
    draw = random.Random(seed)
    texts = [[draw.randrange(3, 96) for _ in range(length)] for length in lengths]
    return [sequence(place, ids) for place, ids in enumerate(texts, 1)]


def largest_difference(model, rows) -> float:
    texts = [row.input_ids for row in rows]
    with torch.no_grad():
        alone = [model(input_ids=torch.tensor([ids]), use_cache=False).logits[0] for ids in texts]
        return float((packed_logits(model, texts) - torch.cat(alone)).abs().max())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("name", TINY)
def test_a_packed_row_has_the_logits_of_the_row_alone(name, attention):
    """In one sequence the logits are those of each row alone, sliding windows included."""
    assert largest_difference(tiny(name, attention), rows_of([7, 1, 17, 2, 5])) < 2e-5


@examples(0.8, derandomize=True, suppress_health_check=list(HealthCheck))
@given(lengths=st.lists(st.integers(1, 20), min_size=2, max_size=6), seed=st.integers(0, 99))
def test_any_lengths_in_any_order_are_kept_apart(lengths, seed):
    """Whatever the lengths, nothing of one row reaches another."""
    assert largest_difference(tiny("llama"), rows_of(lengths, seed)) < 2e-5


def test_lines_of_a_batch_are_padded_without_being_seen():
    """Bins stand in lines of their own; padding has no label and changes no logit."""
    model = tiny("llama")
    groups = [tuple(rows_of([9, 4])), tuple(rows_of([6, 3]))]
    table = dataset_columns(groups, lengths=True)
    lines = [{name: column[line] for name, column in table.items()} for line in range(2)]
    batch = PackedBatches(0)(lines)
    assert "attention_mask" not in batch
    assert batch["input_ids"].shape == (2, 13)
    assert batch.pop("labels")[1, 9:].tolist() == [IGNORED] * 4
    with torch.no_grad():
        logits = model(**batch, use_cache=False).logits
        for line, group in enumerate(groups):
            found = logits[line, : sum(row.tokens for row in group)]
            alone = packed_logits(model, [row.input_ids for row in group])
            assert torch.allclose(found, alone, atol=2e-5)


def sharp(dtype: str):
    """A tiny Llama with logits near 30 as real ones have, in bfloat16 multiples of 0.125."""
    model = tiny("llama")
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            parameter.data *= 40 if "lm_head" in name else 6
    return model.to(getattr(torch, dtype))


def looks_across(model, layers=None):
    """The model, whose attention no longer keeps rows apart: everywhere, or in these layers."""

    def seeing_everything(module, args, keys):
        size = keys["hidden_states"].shape[1]
        return args, keys | {"attention_mask": torch.ones(1, 1, size, size).tril().bool()}

    for number, layer in enumerate(model.model.layers):
        if layers is None or number in layers:
            layer.self_attn.register_forward_pre_hook(seeing_everything, with_kwargs=True)
    return model


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rounding_is_not_taken_for_a_look_across_rows(dtype):
    """16-bit log-probabilities of a packed row differ by a step of rounding from the row alone."""
    # Nor does it matter how much the model makes of its context.
    deaf = tiny("llama").to(getattr(torch, dtype))
    for parameter in deaf.model.layers.parameters():
        parameter.data.zero_()
    for model in (sharp(dtype), deaf):
        check_packing(model, rows_of([23, 31, 40, 61]), stage="cpt", attention="sdpa")


def ignores_positions(model):
    forward = model.forward
    model.forward = lambda *args, position_ids=None, **kwargs: forward(*args, **kwargs)
    return model


@pytest.mark.parametrize(
    "spoil",
    [looks_across, lambda model: looks_across(model, {1}), ignores_positions],
    ids=["everywhere", "in-one-layer", "no-positions"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_a_model_that_looks_across_rows_is_refused(dtype, spoil):
    """One such layer, or no use of positions, is enough; the refusal names the way out."""
    model = spoil(sharp(dtype))
    with pytest.raises(InputError, match="lets packed rows see each other") as caught:
        check_packing(model, rows_of([23, 31, 40]), stage="sft", attention="sdpa")
    assert caught.value.faults[0].hint == "set packing: false"


@pytest.mark.long
def test_smollm_may_be_packed_in_every_dtype(smollm):
    """With one of its 30 layers looking across rows the real model may not be packed."""
    tokenizer = AutoTokenizer.from_pretrained(smollm)
    texts = [
        "The kettle is an old device. It heats water until the steam makes it whistle.",
        "Thyroid hormones control how quickly the body uses energy, and so most of its organs.",
        "A parcel that was sent on Monday arrives on Wednesday, if nothing holds it up.",
        "def mean(values):\n    return sum(values) / len(values)  # of numbers, not of texts",
    ]
    rows = [sequence(place, tokenizer(text)["input_ids"]) for place, text in enumerate(texts)]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = AutoModelForCausalLM.from_pretrained(smollm, dtype=dtype).eval()
        for pair in (rows[:2], rows[2:], rows[1:3]):
            assert leak(model, pair) is None
        assert leak(looks_across(model, {15}), rows[:2])


FLASH = "refuses-the-host"


@pytest.fixture
def flash():
    """An attention that takes tensors of the GPU alone, as flash attention does."""
    plain = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def attention(module, query, *args, **rest):
        if query.device != GPU:
            raise RuntimeError("FlashAttention only supports CUDA tensors")
        return plain(module, query, *args, **rest)

    ALL_ATTENTION_FUNCTIONS.register(FLASH, attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(FLASH, ALL_MASK_ATTENTION_FUNCTIONS["sdpa"])
    yield
    for table in (ALL_ATTENTION_FUNCTIONS, ALL_MASK_ATTENTION_FUNCTIONS):
        table._global_mapping.pop(FLASH)


def test_rows_are_packed_where_attention_takes_the_gpu_alone(make, flash, monkeypatch):
    """A plan for several GPUs that packs rows with flash attention is tried, and stays packed."""
    monkeypatch.setattr(attention, "reads_once", lambda job: True)
    job = make(weights_dtype="bfloat16", packing=True, attention=FLASH)
    with pretend_gpu():
        model = loading.load_base(job, torch.device("cpu"))  # on the host, as before a division
        data = SimpleNamespace(train=rows_of([9, 12]))
        assert unpacked_if_seen(job, data, model, GPU) == (job, data)
        assert next(model.parameters()).device.type == "cpu"


def test_the_first_layers_hold_each_kind():
    """Two layers, or as many as hold one of each kind; lists by layer are cut as well."""
    found = [first_layers(LlamaConfig(num_hidden_layers=n)).num_hidden_layers for n in (30, 1)]
    assert found == [2, 1]
    mixed = first_layers(Gemma3TextConfig(num_hidden_layers=26))
    assert mixed.num_hidden_layers == len(mixed.layer_types) == 6
    assert set(mixed.layer_types) == {"sliding_attention", "full_attention"}


def test_rows_that_are_not_packed_keep_to_what_memory_had_room_for(make, monkeypatch):
    """After a restart with a quarter of the sequences a step still learns as many rows."""
    refuse = Mock(side_effect=InputError("stage sft: packing cannot be used: rows see each other"))
    monkeypatch.setattr(attention, "check_packing", refuse)
    job = make(packing=True, group_by_length=True, seq_len=32, micro_batch_size=4, grad_accum=2)
    data = Prepared(train=rows_of([8] * 64), holdout=[], rows=64)
    sizes = []
    for room in (None, 1):
        found, _ = unpacked_if_seen(replace(job, most_rows=room), data, None, None)
        sizes.append((found.stage.micro_batch_size, found.stage.grad_accum))
        assert not found.stage.packing
    assert sizes == [(16, 2), (4, 8)]


@pytest.fixture
def two_processes(monkeypatch):
    """Two workers build all rows but the first few."""
    for name, value in (("CHUNK_EXAMPLES", 4), ("ALONE_ROWS", 5), ("builders", lambda: 2)):
        monkeypatch.setattr(preparing, name, value)
    yield
    assert not multiprocessing.active_children()


@pytest.fixture
def job(make, pairs):
    """A job on pairs, which every kind can be made of."""
    return make(job_data=pairs, holdout=0.2)


def prepared_in(job, folder, kind, tokenizer=None):
    return prepare_rows(replace(job, run=folder), tokenizer or load_tokenizer(job), kind)


@pytest.mark.parametrize("kind", [ANSWERS, PAIRS, FEEDBACK, PROMPTS], ids=lambda kind: kind.name)
def test_rows_are_read_as_they_were_built(kind, job, tmp_path, monkeypatch):
    """Every field and number is equal, whichever row or slice is read first."""
    monkeypatch.setattr(preparing, "CHUNK_EXAMPLES", 4)  # record batches of a few rows
    monkeypatch.setattr(sequences, "READ_AT_ONCE", 3)  # pages are given back all the time
    found = prepared_in(job, tmp_path / "one", kind)
    templater = Templater(load_tokenizer(job))
    built = kind.rows(read_examples(recognise(str(job.data_path))), templater, LeftOut())
    expected = [replace(row, key="", text="") for row in built]
    held = {row.number for row in found.holdout}
    assert 0 < len(held) < len(expected)
    for rows, is_held in ((found.train, False), (found.holdout, True)):
        whole = tuple(rows)
        assert isinstance(rows.parts[0], StoredRows)
        assert isinstance(rows[0], kind.row)
        assert whole == tuple(row for row in expected if (row.number in held) is is_held)
        assert whole == tuple(rows[place] for place in reversed(range(len(rows))))[::-1]
        assert (tuple(rows[1:3]), rows[-1]) == (whole[1:3], whole[-1])
        assert lengths(rows).tolist() == [row.tokens for row in whole]
        for name in {"learned", "shown", "label"} & set(dir(kind.row)):
            assert values_of(rows, name).tolist() == [getattr(row, name) for row in whole]
        assert tuple(pickle.loads(pickle.dumps(rows))) == whole
        with pytest.raises(IndexError):
            rows[len(rows)]


@pytest.mark.parametrize("kind", [ANSWERS, PAIRS, PROMPTS], ids=lambda kind: kind.name)
@pytest.mark.parametrize("template", [True, False], ids=["template", "no template"])
def test_several_processes_prepare_the_same_file(
    kind, template, job, tmp_path, two_processes, monkeypatch
):
    """Byte for byte, with the same notes and the same template for a tokenizer that has none."""
    found = []
    for name, processes in (("one", 1), ("two", 2)):
        monkeypatch.setattr(preparing, "builders", lambda count=processes: count)
        tokenizer = load_tokenizer(job)
        if not template:
            tokenizer.chat_template = None
        data = in_memory(prepared_in(job, tmp_path / name, kind, tokenizer))
        kept = {file.name: file.read_bytes() for file in (tmp_path / name / "prepared").iterdir()}
        found.append((data, tokenizer.chat_template, kept))
    assert found[0] == found[1]
    assert len(kept) == 3  # nothing temporary is left


def build_alone(example, templater):
    """Rows without a tokenizer; some examples end their process."""
    if example.text == "refused":
        raise InputError(f"row {example.row}: refused", hint="repair it")
    if example.text == "broken":
        raise ValueError(f"row {example.row} is a bug")
    if example.text == "killed" and multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return [sequence(example.row, ids_of([1, 2, 3, example.row]))]


ALONE: Kind[Row] = Kind(name="answers", row=Row, build=build_alone, cut=cut_row)


def preparation(tokenizer, kind=ALONE, holdout=0.0) -> Preparation:
    limits = Limits(seq_len=8, truncation="stop", seed=1)
    return Preparation(templater=Templater(tokenizer), limits=limits, holdout=holdout, kind=kind)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("refused", InputError, "row 37: refused\n  repair it"),
        ("broken", ValueError, "row 37 is a bug"),
        ("killed", MachineNotReady, "ended from outside"),
    ],
)
def test_a_row_that_fails_in_a_worker_ends_all_with_its_own_error(
    text, error, match, tiny_tokenizer, two_processes, tmp_path
):
    """The first one in the order of the file, as with one process; no worker and no file stays."""
    examples = [Example(row=row, text=text if row in (37, 41) else "") for row in range(1, 60)]
    with pytest.raises(error, match=match):
        preparation(tiny_tokenizer).write(tmp_path / "rows.json", examples)
    assert not list(tmp_path.iterdir())


def test_a_stop_ends_the_workers(tiny_tokenizer, two_processes, tmp_path):
    """Ctrl-C, which the workers leave to their parent, ends them and removes what was kept."""

    def examples():
        yield from (Example(row=row, text="") for row in range(1, 100))
        children = multiprocessing.active_children()
        assert len(children) == 2
        assert list(tmp_path.iterdir())
        for child in children:
            os.kill(child.pid, signal.SIGINT)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        preparation(tiny_tokenizer).write(tmp_path / "rows.json", examples())
    assert not list(tmp_path.iterdir())


def kill_at(moment: int) -> None:
    """End this process before it does something to a file after so many times."""
    left = iter(range(moment))

    def killing(done):
        def method(self, *paths):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return done(self, *paths)

        return method

    for name in ("write", "sync", "rename", "remove", "digest"):
        setattr(Disk, name, killing(getattr(Disk, name)))


def test_a_kill_at_any_moment_leaves_nothing_that_is_taken_for_whole(tiny_tokenizer, tmp_path):
    """After a kill before any step of writing, what is read is all of the file or nothing."""
    examples = [Example(row=row, text="") for row in range(1, 9)]
    prepares, path = preparation(tiny_tokenizer, holdout=0.3), tmp_path / "rows.json"
    prepares.write(path, examples, "digest")
    whole = in_memory(prepares.read(path, "digest"))
    outcomes, status = [], -1
    while status != 0:
        for file in tmp_path.iterdir():
            file.unlink()
        pid = os.fork()
        if pid == 0:
            kill_at(len(outcomes))
            prepares.write(path, examples, "digest")
            os._exit(0)
        status = os.waitpid(pid, 0)[1]
        outcomes.append(in_memory(prepares.read(path, "digest")))
        assert outcomes[-1] in (None, whole)
        assert len(outcomes) < 100
    assert len(outcomes) > 9
    assert None in outcomes
    assert outcomes[-1] == whole


class CountedRow(Row):
    """A row that counts how many of its kind are there."""

    __slots__ = ()
    alive = most = 0

    def __new__(cls, *args, **kwargs):
        CountedRow.alive += 1
        CountedRow.most = max(CountedRow.most, CountedRow.alive)
        return object.__new__(cls)

    def __del__(self):
        CountedRow.alive -= 1


def build_counted(example, templater):
    (row,) = build_alone(example, templater)
    return [CountedRow(*(getattr(row, field.name) for field in fields(Row)))]


def test_many_rows_are_never_all_in_memory(tiny_tokenizer, tmp_path, monkeypatch):
    """Of twenty thousand rows no more than a batch are objects at a time, whatever is done."""
    monkeypatch.setattr(preparing, "CHUNK_EXAMPLES", 512)
    monkeypatch.setattr(preparing, "builders", lambda: 1)
    kind = replace(ALONE, row=CountedRow, build=build_counted)
    examples = (Example(row=row, text="") for row in range(1, 20_001))
    CountedRow.alive = CountedRow.most = 0
    prepares = preparation(tiny_tokenizer, kind, holdout=0.1)
    prepares.write(tmp_path / "rows.json", examples, "digest")
    data = prepares.read(tmp_path / "rows.json", "digest")
    assert ((len(data.train), len(data.holdout)), data.counts().tokens) == ((18_000, 2_000), 72_000)
    dataset = rows_dataset(
        pack(data.train, 8), lambda groups: dataset_columns(groups, lengths=True)
    )
    assert len(dataset) == 9_000
    for step in range(0, 9_000, 90):
        assert len(dataset.__getitems__([step, step + 45])) == 2
    assert 512 <= CountedRow.most < 1024


def test_only_the_main_process_prepares(job, tmp_path, monkeypatch):
    """The others read what it wrote, however long they have to wait for it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    first = in_memory(prepared_in(job, tmp_path, PAIRS))
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(Preparation, "write", lambda *_, **__: pytest.fail("prepared again"))
    files = {path: path.read_bytes() for path in (tmp_path / "prepared").iterdir()}
    for path in files:
        path.unlink()

    def write_later(pause_s: float) -> None:
        for path, content in files.items():
            path.write_bytes(content)

    monkeypatch.setattr("trainers.job.machine.time.sleep", write_later)
    assert in_memory(prepared_in(job, tmp_path, PAIRS)) == first


def test_a_main_process_that_fails_leaves_nobody_waiting(make, tmp_path, monkeypatch):
    """The others end with an error that points to it, and a new start waits again."""
    question = {"messages": [{"role": "user", "content": "only a question"}]}
    job = make(job_data=write_rows(tmp_path / "bad.jsonl", [question] * 3))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError):
        prepared_in(job, tmp_path, ANSWERS)
    monkeypatch.setenv("RANK", "1")
    with pytest.raises(ConnectionLost, match="process 0 could not prepare the rows"):
        prepared_in(job, tmp_path, ANSWERS)


def test_a_failure_of_an_earlier_start_is_forgotten(tmp_path, monkeypatch):
    """The main process removes its old message; a process of another parent waits for nothing."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    file = tmp_path / "rows.arrow"
    with pytest.raises(ValueError, match="first"), others_wait_for(file):
        raise ValueError("first")
    with pytest.raises(ConnectionLost):
        wait_for(file, lambda: None)
    with others_wait_for(file):
        pass
    assert not list(tmp_path.iterdir())
    monkeypatch.setattr("trainers.job.machine.os.getppid", Mock(side_effect=[7, 7, 1, 1, 1]))
    with pytest.raises(ConnectionLost, match="launcher"):
        wait_for(file, lambda: None)


# Of this many short rows all are prepared, and a few steps trained.
ROWS = int(os.environ.get("ADVISE_TEST_ROWS", 10_000_000))
LIBRARIES_BYTES = 1 << 30  # torch, transformers, the tiny model and a batch of rows
ROW_BYTES = 100  # of numbers, with what sorting them takes; no text and no token
SCRIPT = """
import json, resource, sys, time
from pathlib import Path

from advisor.plan.model import Plan, PlanData, Stage
from trainers import sft
from trainers.stage import load
from trainers.job.job import make_job

model, data, run = sys.argv[1:]
keys = {"max_steps": 3, "micro_batch_size": 4, "seq_len": 64, "learning_rate": 1e-3}
plan = Plan(
    name="many",
    model=model,
    data=PlanData(path=data),
    stages=(Stage(name="sft", objective="sft", update="lora", **keys),),
)
job = make_job(plan, stage="sft", run=Path(run), folder=Path(run))
prepare, began_s = load.prepare, time.monotonic()

def timed(*args):
    found = prepare(*args)
    print(json.dumps({"prepared_s": time.monotonic() - began_s}), flush=True)
    return found

load.prepare = timed
sft.train(job)
peaks = [resource.getrusage(who).ru_maxrss << 10
         for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
print(json.dumps({"own_bytes": peaks[0], "worker_bytes": peaks[1]}))
"""


@pytest.mark.long
def test_ten_million_rows_take_flat_memory(tiny_model: Path, tmp_path: Path):
    """The trainer holds its libraries and at most a hundred bytes a row, a worker no rows."""
    data = tmp_path / "rows.jsonl"
    with data.open("w") as file:
        rows = (chat(f"What is item {row}?", f"It is number {row * 7}.") for row in range(ROWS))
        file.writelines(json.dumps(row) + "\n" for row in rows)
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tiny_model), str(data), str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    print(done.stdout)
    _, peaks = map(json.loads, done.stdout.splitlines())
    counts = json.loads((tmp_path / "run" / "stages" / "sft" / "result.json").read_text())["data"]
    assert counts["rows"] == counts["train_rows"] + counts["holdout_rows"] == ROWS
    assert peaks["own_bytes"] < LIBRARIES_BYTES + ROW_BYTES * ROWS
    assert peaks["worker_bytes"] < LIBRARIES_BYTES
