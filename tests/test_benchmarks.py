"""benchmarks/: what trains is replaced, but for a slow test's model; the published cases in other
calculators' words; and how the widths of bands are fitted over sources."""

import importlib
import json
import math
import pkgutil
import re
import shutil
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import benchmarks
from advisor.estimate.memory.bands import KNOWN, WORDS
from advisor.ground.types import ModelShape
from benchmarks import estimators, gpu, peers, refit
from benchmarks.calculators import Calculator, calculators
from benchmarks.calculators.accelerate import arguments as accelerate
from benchmarks.calculators.fitcheck import arguments as fitcheck
from benchmarks.calculators.ftuneai import arguments as ftuneai
from benchmarks.calculators.job import job_of, shared
from benchmarks.calculators.soup import arguments as soup
from benchmarks.estimators import VARIABLE, Side, asked, record, shared_names
from benchmarks.measuring import Process, Row, run_process, table
from benchmarks.refit import Fitted, replace_marked, widths_lines
from benchmarks.side_by_side import rows, tools
from tools.generate.accuracy import Case, published, without_model, without_trainer
from tools.generate.accuracy_bands import (
    Distance,
    distances,
    farthest,
    fitted,
    fitted_without_each,
    gpu_gib,
    is_inside,
    quantile,
)

ROOT = Path(__file__).resolve().parent.parent
STORED = ROOT / "tests" / "render" / "gpu_run.json"
PLAIN = {
    "tokens_per_s": 900.0, "allocated_bytes": 2**30, "reserved_bytes": None,
    "losses": [2.0, 1.5, 1.2, 1.0], "grad_norms": [0.5, 0.4],
}  # fmt: skip


@pytest.fixture
def page(tmp_path):
    """A copy of docs/gpu.md."""
    return Path(shutil.copy(ROOT / "docs" / "gpu.md", tmp_path / "gpu.md"))


class Children:
    """Stands for the child processes: notes the commands, and answers like them."""

    def __init__(self, losses=(2.0, 1.0), fails=()):
        self.commands, self.losses, self.fails = [], losses, set(fails)

    def __call__(self, command, folder, limit_s):
        assert limit_s > 0
        if "advisor" not in command:
            self.commands.append((json.loads(command[-1])["case"], Path(command[1]).stem))
            return f"talk\n{json.dumps(PLAIN)}\n"
        plan = json.loads((folder / command[4]).read_text())
        name = plan["stages"][0]["name"]
        self.commands.append((name, "ours"))
        if name in self.fails:
            raise RuntimeError("ended with 5: CUDA out of memory\n  lower micro_batch_size")
        assert (folder / plan["data"]["path"]).stat().st_size > 0
        run = Path(command[-1])
        run.mkdir(parents=True, exist_ok=True)
        lines = [{"loss": loss, "grad_norm": 0.3} for loss in self.losses]
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        return json.dumps({**json.loads(STORED.read_text()), "folder": str(run),
                           "already_done": False, "dry_run": False})  # fmt: skip


@pytest.fixture
def measure(tmp_path, page):
    """Call the benchmark on the CPU with a page of its own."""

    def call(children, *arguments):
        return gpu.main(
            ["--device", "cpu", "--model", "a/model", "--folder", str(tmp_path / "out"),
             "--page", str(page), *arguments],
            start=children,
        )  # fmt: skip

    return call


def test_each_kernel_has_a_row_beside_the_plain_one():
    """One key differs from the plain row; what a machine or older GPU lacks has a reason."""
    rows = [case for case in gpu.CASES if case.kernel]
    plain = rows[0].keys
    for case in rows[1:]:
        assert len([key for key in case.keys if case.keys[key] != plain.get(key, False)]) == 1
    settings = gpu.Settings("cuda", "A100", "a/model", 2, Path(), True, capability=(8, 0))
    left = {case.kernel: gpu.why_left_out(case, settings) for case in rows}
    assert left["plain"] == ""
    assert left["flash_attention_3"] == "it needs compute capability 9.0 to 9.9"
    assert "flash-attn is not installed" in left["flash_attention_2"]


def test_every_method_is_measured_and_written(measure, page):
    """Each method of the guide has a row, beside plain TRL where that has the method."""
    children = Children()
    assert measure(children) == 0
    methods = {"full", "adapter", "prefix", "lora", "qlora", "rm", "dpo", "distill", "ppo", "grpo"}
    plain = {"full", "prefix", "lora", "qlora", "rm", "dpo"}
    wanted = {
        *((name, "ours") for name in {*methods, "full-muon"}),
        *((one, "trl") for one in plain),
    }
    assert set(children.commands) == wanted
    text = page.read_text()
    assert "| CPU | model | lora | plain TRL | 900 | 1.00 | ? | 2.000 -> 1.000 | 0.5 | ok |" in text
    assert "| 2.00 | 1.50 | 1.75 | 110 s | 98 s | 5120 |" in text
    assert (measure(Children()), page.read_text()) == (0, text)


def test_a_second_call_does_only_what_is_left(measure):
    """Finished rows are kept, failed ones tried again; other settings are other rows."""
    only = ("--only", "lora", "--only", "dpo")
    assert measure(Children(fails={"dpo"}), *only) == 1
    for arguments, commands in (
        (only, [("dpo", "ours")]),
        (("--only", "lora", "--steps", "4"), [("lora", "ours"), ("lora", "trl")]),
    ):
        again = Children()
        assert (measure(again, *arguments), again.commands) == (0, commands)


class Slow(Children):
    """The same on a clock of their own; a row that is not done in its time is ended."""

    def __init__(self, monkeypatch, took, **more):
        super().__init__(**more)
        self.now, self.took = 1000.0, took
        monkeypatch.setattr(gpu.time, "monotonic", lambda: self.now)

    def __call__(self, command, folder, limit_s):
        try:
            return super().__call__(command, folder, limit_s)
        finally:
            took = self.took(self.commands[-1])
            self.now += min(took, limit_s)
            if took > limit_s:
                raise gpu.OutOfTime


def test_a_benchmark_is_measured_in_parts_of_five_minutes(measure, page, monkeypatch, capsys):
    """Each part goes on where the last one stopped, and nothing is trained twice."""
    whole = Children()
    assert measure(whole) == 0
    everything = page.read_text()
    children, parts, codes = Slow(monkeypatch, lambda _: 80), [], []
    while not codes or codes[-1] == 75:
        began = children.now
        codes.append(measure(children, "--folder", str(page.parent / "parts")))
        parts.append(children.now - began)
    assert (codes[-1], children.commands, page.read_text()) == (0, whole.commands, everything)
    assert (len(parts), set(parts[:-1])) == (-(-len(whole.commands) // 3), {240})
    assert "\n14 rows are left: the same command goes on\n" in capsys.readouterr().out


def test_a_row_that_takes_longer_than_a_part_holds_up_no_other(measure, monkeypatch, page):
    """It has a part to itself once, and fails then; what a part's end cut off is begun anew."""
    took = {("lora", "ours"): 280, ("dpo", "ours"): 400}
    children = Slow(monkeypatch, lambda one: took.get(one, 60))
    only = [f"--only={name}" for name in ("adapter", "lora", "dpo")]
    assert [measure(children, *only) for _ in range(5)] == [75, 75, 75, 75, 1]
    adapter, lora, dpo = (("adapter", "ours"), ("lora", "ours"), ("dpo", "ours"))
    plain = [("lora", "trl"), ("dpo", "trl")]
    assert children.commands == [adapter, lora, lora, plain[0], dpo, plain[1]]
    assert "failed: not done in 5 minutes; --minutes gives it more" in page.read_text()


def test_a_child_that_takes_too_long_is_asked_to_end(tmp_path):
    """It can put away what it holds; what it prints after that is not waited for."""
    code = (
        "import signal, sys, time, pathlib\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(pathlib.Path('ended').touch()))\n"
        "pathlib.Path('there').touch(); time.sleep(60)"
    )
    with pytest.raises(gpu.OutOfTime):
        gpu.start_child([sys.executable, "-c", code], tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ended", "there"]


@pytest.mark.parametrize(
    ("losses", "fails", "text"),
    [
        ((1.0, 2.0), (), "the loss did not fall"),
        ((2.0, 1.0), ("lora",), "failed: ended with 5: CUDA out of memory"),
    ],
)
def test_what_went_wrong_is_a_row_and_an_exit_code(measure, page, losses, fails, text):
    """A loss that does not fall, or a training that failed, is written and gives exit code 1."""
    assert measure(Children(losses, fails), "--only", "lora") == 1
    assert text in page.read_text()


@pytest.mark.parametrize(
    ("name", "losses", "norm", "verdict"),
    [
        ("lora", [2, 1], 0.0, "no gradient"),
        ("ppo", [1, 2], 0.1, "ok"),  # its loss need not fall
    ],
)
def test_a_gradient_of_zero_is_no_training(name, losses, norm, verdict):
    """The verdict wants a gradient norm above zero."""
    (case,) = (case for case in gpu.CASES if case.name == name)
    assert gpu.verdict(case, {"losses": losses, "grad_norms": [norm]}) == verdict


@pytest.mark.train
def test_without_a_gpu_it_says_so(capsys):
    """Exit code 4, and where to read on."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert (gpu.main([]), "no GPU" in capsys.readouterr().err) == (4, True)


@pytest.mark.slow
@pytest.mark.train
def test_the_whole_path_runs_on_the_cpu(tiny_model, tmp_path, page):
    """Real child processes, ours and plain TRL's, train a tiny model and fill the page."""
    code = gpu.main(
        ["--device", "cpu", "--model", str(tiny_model), "--folder", str(tmp_path / "out"),
         "--page", str(page), "--only", "lora", "--steps", "6"]
    )  # fmt: skip
    text = page.read_text()
    assert code == 0, text[text.index("<!-- speed -->") :]
    assert text.count("| ok |") == 2


def trained(*losses, **more):
    """What six seconds of a training with these losses came to."""
    lines = [{"loss": loss, **(more or {"grad_norm": 0.5})} for loss in losses]
    return tools.training_of(6.0, lines, Process(10.0, 2**30, ""))


def test_a_training_that_learns_nothing_is_no_result():
    """Gradients above zero in every step, and a last reading that goes better than the first."""
    falls = [3.0, 2.0, 3.1, 2.1, 2.9, 1.9]
    assert trained(*falls).losses == falls
    with pytest.raises(AssertionError, match=r"did not fall: 2\.500, then 2\.550"):
        trained(3.0, 2.0, 2.0, 2.0, 3.0, 2.1)
    for without in ({"grad_norm": 0.0}, {"other": 1.0}):
        with pytest.raises(AssertionError, match="gradient norms"):
            trained(3.0, 2.0, 1.0, **without)


@pytest.mark.parametrize(("text", "seconds"), [("61.5", 61.5), ("0:01:01.5", 61.5)])
def test_the_time_that_a_tool_printed_is_read(text, seconds):
    assert tools.seconds_of(text) == seconds


def test_the_rows_are_the_same_each_time_and_of_all_lengths(tmp_path, monkeypatch):
    """They have the bundled data's words in alpaca's lengths, or come from a file of your own."""
    chats = rows.conversations(200)
    assert chats == rows.conversations(200)
    words = sorted(len(chat[-1]["content"].split()) for chat in rows.spread(chats, 8))
    assert (len(words), words[0] < 30, words[-1] > 250) == (8, True, True)
    keys = ("instruction", "input", "output")
    own = [("Add.", "1 + 2", "3"), ("Say.", "", " ")]
    path = tmp_path / "own.json"
    path.write_text(json.dumps([dict(zip(keys, row, strict=True)) for row in own]))
    monkeypatch.setenv(rows.DATA, str(path))
    assert rows.conversations(10) == [
        [{"role": "user", "content": "Add.\n1 + 2"}, {"role": "assistant", "content": "3"}]
    ]


def test_a_process_says_what_it_cost():
    """The time of its own children counts, and the memory of the largest of them."""
    inner = "x = bytearray(80_000_000); [i * i for i in range(10**6)]"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''{inner}'''])"
    done = run_process([sys.executable, "-c", code])
    assert (done.peak_bytes > 80_000_000, done.cpu_s > 0) == (True, True)
    with pytest.raises(RuntimeError, match="ended with 3: no"):
        run_process([sys.executable, "-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"])


def test_rows_are_compared_within_their_group():
    """The first row of a unit in each group is what the others are compared with."""
    made = [
        Row(name, (value,), "s", group=group)
        for group in ("equal", "defaults")
        for name, value in (("a", 2.0), ("b", 3.0))
    ]
    shown = [line.split() for line in table(made).splitlines()[1:]]
    assert [line[0] for line in shown] == ["equal", "a", "b", "defaults", "a", "b"]
    assert [line[-1] for line in shown if line[0] == "b"] == ["1.50", "1.50"]


def test_a_tool_that_did_not_run_is_a_line_with_the_reason(monkeypatch):
    """It says what was looked for, and nothing in any other unit."""
    monkeypatch.setenv(tools.LLAMA_FACTORY, "/no/such/llamafactory-cli")
    with pytest.raises(tools.NotRun, match="ADVISE_LLAMA_FACTORY: /no/such/llamafactory-cli"):
        tools.llama_factory_command()
    ran = peers.Seen([trained(4.0, 3.0, 2.0)])
    seen = {"equal": {"advise run": ran, "TRL": peers.Seen(absent="no such file")}}
    shown = table(peers.table_rows(seen, learned=600))
    assert [" ".join(line.split()) for line in shown.splitlines() if line.startswith("TRL")] == [
        "TRL not run: no such file"
    ]
    assert re.search(r"(?m)^advise run +2 .*s a step", shown)
    assert shown.count("advise run") == len(peers.UNITS)


@pytest.mark.parametrize(
    ("last", "said"), [(2.004, "loss equal"), (2.4, "loss NOT equal")], ids=["equal", "apart"]
)
def test_losses_that_differ_are_told(last, said):
    """The first and the last of them, to the digits that tools print."""
    ends = {"advise run": 2.0, "TRL": last}
    (line,) = peers.agreements(
        {name: peers.Seen([trained(4.0, 3.0, end)]) for name, end in ends.items()}
    )
    assert [one for one in (said, f"TRL 4.000 to {last:.3f}") if one not in line] == []


def test_an_export_that_is_refused_is_the_reason(tmp_path, monkeypatch):
    """Of `advise export`, in its own words."""
    made = rows.Rows(tmp_path / "rows.jsonl", tmp_path, tmp_path, tmp_path, 4, 40, 20, 10)
    task = tools.Task("equal", "some/model", made, tmp_path, 2)
    with pytest.raises(tools.NotRun, match="unknown form 'nonesuch'"):
        tools.exported(task, "nonesuch")
    assert (tmp_path / "plan.yaml").is_file()


def test_every_benchmark_can_be_started():
    """Each module is imported, and has a title and something to measure."""
    names = {one.name for one in pkgutil.iter_modules(benchmarks.__path__) if not one.ispkg}
    names -= {"__main__", "measuring", "gpu", "gpu_rows"}
    assert {"peers", "departments"} <= names
    for name in names:
        module = importlib.import_module(f"benchmarks.{name}")
        assert (bool(module.TITLE), callable(module.measure)) == (True, True), name


# config.json of Llama-2-7B.
SHAPE = ModelShape(
    id="m", origin="catalogue", params=6738415616, hidden_size=4096, layers=32, heads=32,
    kv_heads=32, head_dim=128, intermediate_size=11008, vocab_size=32000, tied_embeddings=False
)  # fmt: skip


FULL: dict[str, Any] = {"update": "full", "rank": None, "target_modules": None}


def case(**given: Any) -> dict[str, Any]:
    plain = {
        "id": "x", "update": "qlora", "rank": 8, "micro_batch_size": 2, "seq_len": 512,
        "gradient_checkpointing": True, "counter": "reserved", "gpu": "NVIDIA Tesla T4",
    }  # fmt: skip
    return {**published()["defaults"], **plain, "target_modules": ["q_proj", "v_proj"], **given}


def job(**given: Any) -> Any:
    return job_of(case(**given), SHAPE)


def test_a_qlora_case_reaches_each_calculator_in_its_own_words():
    """Under the names that each calculator documents."""
    one = job(optimizer="adamw_8bit")
    told = fitcheck(one)
    layers = told.pop("config")["num_hidden_layers"]
    assert (told.pop("gpu"), told.pop("params"), layers) == ("t4", 6738415616, 32)
    assert told["training"] == {
        "precision": "bf16", "quantization": "nf4", "double_quant": False, "optimizer": "adam8bit",
        "optimizer_dtype": "bf16", "batch_size": 2, "seq_len": 512, "lora_rank": 8,
        "grad_checkpoint": True, "flash_attn": True, "lora_targets": ["q_proj", "v_proj"],
    }  # fmt: skip
    assert ftuneai(one)["words"] == {
        "method": "qlora", "quantization": "4bit", "optimizer": "adam_8bit",
        "lora_target": "attention", "sharding": "none",
    }  # fmt: skip
    expected = {
        "quantization": "4bit", "optimizer": "adamw_bnb_8bit", "peft": "qlora",
        "model_params_b": pytest.approx(6.738, abs=1e-3),
    }  # fmt: skip
    assert soup(one).items() >= expected.items()
    assert isinstance(accelerate(one), str)


SEVEN = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.mark.parametrize(
    ("targets", "names", "nearest"),
    [
        (["c_attn"], ("q_proj", "k_proj", "v_proj"), "attention_all"),
        (["c_attn", "c_proj", "w1", "w2"], SEVEN, "all_linear"),
        ("all-linear", SEVEN, "all_linear"),
        (["q_proj", "v_proj", "lm_head"], ("q_proj", "v_proj"), "attention"),
    ],
)
def test_fused_projections_become_the_seven_usual_names(
    targets: Any, names: tuple[str, ...], nearest: str
):
    """Qwen's c_attn is queries, keys and values; what a calculator has no name for is left out."""
    one = job(target_modules=targets)
    assert (one.targets, ftuneai(one)["words"]["lora_target"]) == (names, nearest)


def test_full_training_in_float32_keeps_its_bytes():
    """Adam's moments have the dtype of the weights, and accelerate is told 4 bytes a parameter."""
    pure, single = job(**FULL), job(**FULL, weights_dtype="float32")
    told = fitcheck(pure)["training"].items()
    assert told >= {"optimizer_dtype": "bf16", "lora_rank": None}.items()
    assert accelerate(pure) == {"size_bytes": 26953662464, "precision": "bfloat16"}
    precisions = (fitcheck(single)["training"]["precision"], accelerate(single)["precision"])
    assert precisions == ("fp32", "float32")


def test_several_gpus_are_told_only_where_there_are_words_for_them():
    """A sharded run goes to the one calculator that knows sharding; the others are not asked."""
    several = job(gpus=4, sharding="fsdp")
    told = ftuneai(several)
    assert (told["words"]["sharding"], told["config"]["num_gpus"]) == ("fsdp", 4)
    assert fitcheck(several) == soup(several) == "one GPU only"


@pytest.mark.parametrize(
    "given",
    [
        {"offload_weights": True},
        {"optimizer": "adamw_cpu"},
        {"train_embeddings": True},
        {"gradient_checkpointing": "selective"},
    ],
)
def test_what_no_calculator_has_words_for_is_not_asked(given: dict[str, Any]):
    """Such a case has a reason instead of a job, and no calculator is scored on it."""
    assert isinstance(job_of(case(**given), SHAPE), str)


@pytest.mark.parametrize(
    "given",
    [
        {"loss": "fused"},
        {"optimizer": "paged_adamw"},
        {"gpus": 2},
        {"weights_dtype": "float16"},
        {"target_modules": ["q_proj", "lm_head"]},
    ],
)
def test_the_shared_subset_keeps_to_plain_runs(given: dict[str, Any]):
    """One GPU, bf16, AdamW and a plain loss."""
    assert (shared(case()), shared(case(**given))) == (True, False)


def test_a_child_that_refuses_one_case_still_answers_the_others():
    """Answers stay with their cases, and a refusal keeps its reason."""
    body = (
        '    if item["batch"] == 2:\n        raise ValueError("too many")\n'
        '    return item["batch"] * 1.5, 0.5'
    )
    stand_in = Calculator(
        name="stand_in", package="pytest", imports="import math", body=body,
        arguments=lambda one: (
            "not asked" if one.micro_batch_size == 3 else {"batch": one.micro_batch_size}
        ),
    )  # fmt: skip
    told = [({"id": str(size)}, replace(job(), micro_batch_size=size)) for size in (1, 2, 3, 4)]
    version, answers = asked(stand_in, sys.executable, [*told, ({"id": "5"}, "no words")])
    assert version == pytest.__version__
    refused = {"2": "ValueError: too many", "3": "not asked", "5": "no words"}
    assert answers == {"1": (1.5, 0.5), "4": (6.0, 0.5), **refused}


@pytest.mark.parametrize("calculator", calculators(), ids=lambda one: one.name)
def test_every_calculator_answers_or_says_why_not(calculator: Calculator):
    """Arguments that JSON can carry, or a reason."""
    for one in (job(), job(**FULL), job(gpus=4), replace(job(), experts=8, active_experts=2)):
        told = calculator.arguments(one)
        assert json.dumps(told) if isinstance(told, dict) else told
    assert calculator.has_adapters == isinstance(calculator.arguments(job()), dict)
    assert calculator.note
    compile(calculator.script, calculator.package, "exec")  # a text until another Python reads it


def test_without_other_environments_each_calculator_is_left_out_and_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    """No variable, no calculator: the output says which were left out and how to install them."""
    monkeypatch.delenv(VARIABLE, raising=False)
    assert estimators.measure() == []
    out = capsys.readouterr().out
    for one in calculators():
        assert f"{one.package}: left out" in out
        assert f"FOLDER/{one.name}/bin/pip install {one.package}" in out


def test_a_calculator_without_full_fine_tuning_does_not_narrow_the_shared_runs():
    """Shared are the runs that all answer which know both; the record holds each on its part."""
    facts = [
        {**case(), "id": "a", "source": "s", "measured_gib": 10.0},
        {**case(**FULL), "id": "b", "source": "s",
         "measured_gib": 20.0},
    ]  # fmt: skip
    told = [(one, "no job") for one in facts]

    def side(name: str, *ids: str, context: bool = True) -> Side:
        found = {one["id"]: Case(one, {"peak_gib": 10.0}) for one in facts if one["id"] in ids}
        calculator = Calculator(
            name=name, package=name, arguments=str, imports="", body="", note="one GPU",
            has_context=context,
        )  # fmt: skip
        return Side(calculator, "1.0", found, found)

    sides = [side("both", "a", "b"), side("adapters", "a", context=False)]
    assert shared_names(sides, told) == ["a", "b"]
    lines = record(sides, told, sides[0].printed, measured="2026-01-01")
    rows = yaml.safe_load("\n".join(lines))["other_calculators"]
    assert [(row["name"], row["cases"], row["answered"]) for row in rows["rows"]] == [
        ("both 1.0", "answered", 2),
        ("adapters 1.0", "answered", 1),
        ("both 1.0", "shared", 2),
        ("adapters 1.0", "shared", 1),
    ]
    assert rows["rows"][0]["printed"]["median_error"] == 0.25
    assert "tensors" not in rows["rows"][1]
    assert rows["notes"] == {"both": "one GPU", "adapters": "one GPU"}


def run(source: str, log: float, *doubts: str) -> Distance:
    return Distance(Case({"source": source}, {}), log, doubts)


def sources(count: int, *doubts: str, scale: float = 0.01) -> list[Distance]:
    """Sources whose runs all lie 1, 2, 3 ... times `scale` from the estimate, on both sides."""
    return [
        run(f"s{number}", sign * scale * number, *doubts)
        for number in range(1, count + 1)
        for sign in (-1, 1, 1, -1)
    ]


def test_a_width_covers_a_share_of_the_sources_and_one_more_for_few():
    """Rank (n + 1) p of n, each source once: the 13th of 19 below, the 14th above, the 5th of 5."""
    assert fitted({KNOWN: sources(19)})[KNOWN] == pytest.approx((0.13, 0.14))
    assert fitted({KNOWN: sources(5)})[KNOWN] == pytest.approx((0.04, 0.05))
    assert farthest(sources(19) + [run("s1", 0.0)] * 1000, {KNOWN: (0.18, 0.19)}, 0, 0.9) <= 1


def test_a_doubt_adds_the_width_that_its_runs_need_in_squares():
    """Known runs lie within 0.3; with the trainer taken away, all within 0.5: it adds 0.4."""
    known = sources(5, scale=0.06)
    found = fitted({KNOWN: known, "trainer": sources(5, "trainer", scale=0.1)})
    assert found[KNOWN] == pytest.approx((0.24, 0.3))
    assert (found["trainer"], found["loss"]) == (pytest.approx((0.44, 0.4)), (0.0, 0.0))
    # A fact that changes no estimate brings the band to the share of sources that doubts have.
    changed = [Distance(row.case, row.log, ("counter",)) for row in known]
    assert fitted({KNOWN: known, "counter": changed})["counter"] == pytest.approx((0.18, 0.0))


def test_widths_of_a_source_left_out_do_not_know_it():
    """The farthest source does not widen the band that it is asked about."""
    rows = [*sources(8), *[run("far", 0.9)] * 4]
    without = fitted_without_each({KNOWN: rows})
    for left_out, width, inside in (("far", 0.07, False), ("s1", 0.08, False)):
        assert without[left_out][KNOWN][1] == pytest.approx(width)
        assert is_inside(rows[-1], without[left_out]) is inside


def test_quantiles_lie_between_neighbours():
    assert quantile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert quantile([0.0, 1.0], 0.95) == pytest.approx(0.95)


def test_distances_read_the_doubts_that_an_answer_names():
    """log(measured / estimated), and keys for words."""
    answer = {"peak_gib": 10.0, "band_because": [WORDS["experts"]]}
    (found,) = distances([Case({"source": "a", "measured_gib": 20.0}, answer)])
    assert (found.log, found.doubts) == (pytest.approx(math.log(2)), ("experts",))


def test_taking_a_fact_away_leaves_the_rest():
    """A model's name becomes its size, a trainer's name a word that nobody knows."""
    spec = {"model": "meta-llama/Llama-3.1-8B", "framework": "axolotl", "seq_len": 512}
    assert without_model(spec) == {
        "framework": "axolotl",
        "seq_len": 512,
        "model_params_b": pytest.approx(8.03, abs=0.01),
    }
    unnamed = without_trainer({**spec, "year": "2025"})
    assert unnamed == {**spec, "year": "2025", "framework": "unknown trainer", "date": "2025"}


@pytest.mark.parametrize(
    ("facts", "gib"),
    [
        ({"card_gib": 24, "gpu": "NVIDIA A100-80GB"}, 24),
        ({"gpu": "NVIDIA A100-SXM4-80GB"}, pytest.approx(80, rel=0.02)),
        ({}, None),
    ],
)
def test_the_memory_of_a_gpu_is_the_source_s_or_the_catalogue_s(facts, gib):
    assert gpu_gib(facts) == gib


def test_widths_are_written_between_their_marks(tmp_path):
    """Only the marked lines change; a file without marks is refused."""
    path = tmp_path / "bands.py"
    path.write_text("a\n# fitted widths\nold\n# end of fitted widths\nb\n")
    replace_marked(path, "fitted widths", widths_lines({"known": (0.1, 0.25)}))
    assert path.read_text() == (
        "a\n# fitted widths\nWIDTHS: Mapping[str, tuple[float, float]] = {\n"
        '    "known": (0.10, 0.25),\n}\n# end of fitted widths\nb\n'
    )
    with pytest.raises(ValueError, match="no lines between"):
        replace_marked(path, "something else", [])


def test_a_refit_scales_constants_and_puts_them_back(monkeypatch: pytest.MonkeyPatch):
    """Numbers and tables of numbers, by a factor of what they are; one that is gone is named."""
    assert len(refit.originals()) >= len(refit.FITTED)
    monkeypatch.setattr(refit, "originals", cache(refit.originals.__wrapped__))
    module = ModuleType("constants")
    vars(module).update(BYTES=4.0, CACHE={"reserved": 0.5, "allocated": 0.0})
    monkeypatch.setattr(refit, "FITTED", (Fitted(module, ("BYTES", "CACHE"), (1.0, 2.0)),))
    for factor, reserved in ((2.0, 1.0), (1.0, 0.5)):
        refit.use((factor,))
        now = {"BYTES": 4 * factor, "CACHE": {"reserved": reserved, "allocated": 0.0}}
        assert {name: vars(module)[name] for name in now} == now
    monkeypatch.setattr(refit, "FITTED", (Fitted(module, ("GONE",), (1.0,)),))
    refit.originals.cache_clear()
    with pytest.raises(LookupError, match=r"constants\.GONE"):
        refit.use((1.0,))
