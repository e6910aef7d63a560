"""`python -m benchmarks gpu` and `peers`: what trains is replaced, but for a slow test's model."""

import importlib
import json
import pkgutil
import re
import shutil
import sys
from pathlib import Path

import pytest

import benchmarks
from benchmarks import gpu, peers
from benchmarks.measuring import Process, Row, run_process, table
from benchmarks.side_by_side import rows, tools

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


def test_a_second_call_does_only_what_is_left(measure, capsys):
    """Finished rows are kept, failed ones tried again; out of time it says how to resume."""
    only = ("--only", "lora", "--only", "dpo")
    assert measure(Children(fails={"dpo"}), *only) == 1
    for arguments, code, commands in (
        (only, 0, [("dpo", "ours")]),
        (("--only", "lora", "--steps", "4"), 0, [("lora", "ours"), ("lora", "trl")]),
        (("--minutes", "0"), 1, []),
    ):
        again = Children()
        assert (measure(again, *arguments), again.commands) == (code, commands)
    assert "the next call resumes here" in capsys.readouterr().out


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
