"""`python -m benchmarks gpu`: settings, child processes, results that are kept, and the page.

What trains is replaced here; the slow test trains a tiny model on the CPU with nothing replaced.
"""

import json
import shutil
from pathlib import Path

import pytest

from benchmarks import gpu

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
            given = json.loads(command[-1])
            self.commands.append((given["case"], Path(command[1]).stem))
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
    """One key of the plan differs from the plain row; what a machine lacks is left out with the
    reason, and a kernel for Hopper on an older GPU.
    """
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
    ours = {name for name, side in children.commands if side == "ours"}
    methods = {"full", "adapter", "prefix", "lora", "qlora", "rm", "dpo", "distill", "ppo", "grpo"}
    assert ours == methods | {"full-muon"}
    plain = {name for name, side in children.commands if side == "trl"}
    assert plain == {"full", "prefix", "lora", "qlora", "rm", "dpo"}
    text = page.read_text()
    assert "| CPU | model | lora | plain TRL | 900 | 1.00 | ? | 2.000 -> 1.000 | 0.5 | ok |" in text
    assert "| 2.00 | 1.50 | 1.75 | 110 s | 98 s | 5120 |" in text
    before = text
    assert measure(Children()) == 0
    assert page.read_text() == before


def test_a_second_call_does_only_what_is_left(measure, capsys):
    """Finished rows are kept in a file; one that failed is tried again, other settings begin anew.
    With no time left nothing is started, and the next call is said to resume.
    """
    only = ("--only", "lora", "--only", "dpo")
    assert measure(Children(fails={"dpo"}), *only) == 1
    for arguments, commands in (
        (only, [("dpo", "ours")]),
        (("--only", "lora", "--steps", "4"), [("lora", "ours"), ("lora", "trl")]),
    ):
        again = Children()
        assert (measure(again, *arguments), again.commands) == (0, commands)
    late = Children()
    assert (measure(late, "--minutes", "0"), late.commands) == (1, [])
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


def test_a_gradient_of_zero_is_no_training():
    """The verdict wants a gradient norm above zero; PPO's loss need not fall."""
    cases = {case.name: case for case in gpu.CASES}
    assert gpu.verdict(cases["lora"], {"losses": [2, 1], "grad_norms": [0.0]}) == "no gradient"
    assert gpu.verdict(cases["ppo"], {"losses": [1, 2], "grad_norms": [0.1]}) == "ok"


@pytest.mark.train
def test_without_a_gpu_it_says_so(capsys):
    """Exit code 4, and where to read on."""
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert gpu.main([]) == 4
    assert "no GPU" in capsys.readouterr().err


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
