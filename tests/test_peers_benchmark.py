"""`python -m benchmarks peers`: rows, what counts as a training, and the table. The tools
themselves run in the benchmark alone.
"""

import importlib
import json
import pkgutil
import sys

import pytest

import benchmarks
from benchmarks import peers
from benchmarks.measuring import Process, Row, run_process, table
from benchmarks.side_by_side import rows, tools

DONE = Process(10.0, 2**30, "")


def lines(*losses, norm=0.5):
    return [{"loss": loss, "grad_norm": norm} for loss in losses]


def test_a_training_that_learns_nothing_is_no_result():
    """Gradients above zero in every step, and a last reading that goes better than the first."""
    falls = (3.0, 2.0, 3.1, 2.1, 2.9, 1.9)
    assert tools.training_of(5.0, lines(*falls), DONE).losses == [*falls]
    with pytest.raises(AssertionError, match=r"did not fall: 2\.500, then 2\.550"):
        tools.training_of(5.0, lines(3.0, 2.0, 2.0, 2.0, 3.0, 2.1), DONE)
    for without in (lines(3.0, 2.0, 1.0, norm=0.0), [{"loss": loss} for loss in (3.0, 2.0, 1.0)]):
        with pytest.raises(AssertionError, match="gradient norms"):
            tools.training_of(5.0, without, DONE)


@pytest.mark.parametrize(("text", "seconds"), [("61.5", 61.5), ("0:01:01.5", 61.5)])
def test_the_time_that_a_tool_printed_is_read(text, seconds):
    assert tools.seconds_of(text) == seconds


def test_the_rows_are_the_same_each_time_and_of_all_lengths(tmp_path, monkeypatch):
    """They have the bundled data's words in alpaca's lengths, or come from a file of your own."""
    chats = rows.conversations(200)
    assert chats == rows.conversations(200)
    words = sorted(len(chat[-1]["content"].split()) for chat in rows.spread(chats, 8))
    assert (len(words), words[0] < 30, words[-1] > 250) == (8, True, True)
    own = tmp_path / "own.json"
    own.write_text(json.dumps([{"instruction": "Add.", "input": "1 + 2", "output": "3"},
                               {"instruction": "Say.", "input": "", "output": " "}]))  # fmt: skip
    monkeypatch.setenv(rows.DATA, str(own))
    assert rows.conversations(10) == [
        [{"role": "user", "content": "Add.\n1 + 2"}, {"role": "assistant", "content": "3"}]
    ]


def test_a_tool_that_is_not_there_says_why(monkeypatch):
    monkeypatch.setenv(tools.LLAMA_FACTORY, "/no/such/llamafactory-cli")
    with pytest.raises(tools.NotRun, match="ADVISE_LLAMA_FACTORY: /no/such/llamafactory-cli"):
        tools.llama_factory_command()


def test_a_process_says_what_it_cost():
    """The time of its own children counts, and the memory of the largest of them."""
    inner = "x = bytearray(80_000_000); [i * i for i in range(10**6)]"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', '''{inner}'''])"
    done = run_process([sys.executable, "-c", code])
    assert done.peak_bytes > 80_000_000
    assert done.cpu_s > 0
    with pytest.raises(RuntimeError, match="ended with 3: no"):
        run_process([sys.executable, "-c", "import sys; print('no', file=sys.stderr); sys.exit(3)"])


def test_rows_are_compared_within_their_group():
    """The first row of a unit in each group is what the others are compared with."""
    shown = table(
        [Row(name, (value,), "s", group=group)
         for group in ("equal", "defaults") for name, value in (("a", 2.0), ("b", 3.0))]
    ).splitlines()  # fmt: skip
    assert [line.split()[0] for line in shown[1:]] == ["equal", "a", "b", "defaults", "a", "b"]
    assert [line.split()[-1] for line in shown if line.startswith("b")] == ["1.50", "1.50"]


def test_a_tool_that_did_not_run_is_a_line_with_the_reason():
    """And says nothing in any other unit."""
    ran = tools.Training(6.0, [4.0, 3.0, 2.0], [1.0] * 3, DONE)
    seen = {"equal": {"advise run": peers.Seen([ran]), "TRL": peers.Seen(absent="no such file")}}
    shown = table(peers.table_rows(seen, learned=600))
    assert [line.split() for line in shown.splitlines() if line.startswith("TRL")] == [
        ["TRL", "not", "run:", "no", "such", "file"]
    ]
    step = next(line for line in shown.splitlines() if "s a step" in line)
    assert step.split()[:3] == ["advise", "run", "2"]
    assert shown.count("advise run") == len(peers.UNITS)


@pytest.mark.parametrize(
    ("last", "said"), [(2.004, "loss equal"), (2.4, "loss NOT equal")], ids=["equal", "apart"]
)
def test_losses_that_differ_are_told(last, said):
    """The first and the last of them, to the digits that tools print."""
    seen = {
        name: peers.Seen([tools.Training(6.0, [4.0, 3.0, end], [1.0] * 3, DONE)])
        for name, end in (("advise run", 2.0), ("TRL", last))
    }
    (line,) = peers.agreements(seen)
    assert said in line
    assert f"TRL 4.000 to {last:.3f}" in line


def test_an_export_that_is_refused_is_the_reason(tmp_path, monkeypatch):
    """Of `advise export`, in its own words."""
    made = rows.Rows(tmp_path / "rows.jsonl", tmp_path, tmp_path, tmp_path, 4, 40, 20, 10)
    task = tools.Task("equal", "some/model", made, tmp_path, 2)
    with pytest.raises(tools.NotRun, match="unknown form 'nonesuch'"):
        tools.exported(task, "nonesuch")
    assert (tmp_path / "plan.yaml").is_file()


NO_BENCHMARKS = ("__main__", "measuring", "gpu", "gpu_rows")


def test_every_benchmark_can_be_started():
    """Each module is imported, and has a title and something to measure."""
    found = {
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if module.name not in NO_BENCHMARKS and not module.ispkg
    }
    assert {"peers", "departments"} <= found
    for name in found:
        module = importlib.import_module(f"benchmarks.{name}")
        assert (bool(module.TITLE), callable(module.measure)) == (True, True), name
