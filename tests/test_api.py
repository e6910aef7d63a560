"""The Python API: `from advisor import advise`, which needs PyYAML and nothing else."""

import json
import re
import subprocess
import sys

import pytest

import advisor
from advisor import AdviseError, Answers, advise, advise_document
from advisor.plan.read import read_plan
from tests.conftest import PAIRS, ROOT

QUESTION = {"task": "qa", "gpu": "RTX 4090", "model": "Qwen/Qwen3-8B"}


def python(code, *arguments):
    """What this code prints in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_example_of_the_manual_runs(tmp_path, monkeypatch, capsys):
    """The example in docs/programs.md prints what stands below it, and its plan reads back."""
    text = (ROOT / "docs" / "programs.md").read_text().partition("## From Python")[2]
    (example,) = re.findall(r"```python\n(.*?)```", text, flags=re.S)
    printed, *_ = re.findall(r"```text\n(.*?)```", text, flags=re.S)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train.jsonl").write_text(PAIRS)
    exec(compile(example, "docs/programs.md", "exec"), {})
    assert capsys.readouterr().out == printed
    assert read_plan(tmp_path / "plan.yaml").model == "Qwen/Qwen3-8B"


def test_the_document_is_the_one_of_the_command_line(call, tmp_path):
    """The same answers give the same document, from a program and from `advise --json`."""
    data = tmp_path / "train.jsonl"
    data.write_text(PAIRS)
    question = {**QUESTION, "budget": "low", "data": {"path": str(data)}}
    (tmp_path / "answers.json").write_text(json.dumps(question))
    code, out, _ = call("--json", "--answers", "answers.json")
    document = advise_document({**question, "data": {"path": data}})
    assert code == 0
    assert document["plan"]
    assert json.loads(json.dumps(document)) == json.loads(out)


@pytest.mark.parametrize(
    "answers", [QUESTION, Answers.from_dict(QUESTION)], ids=["dict", "Answers"]
)
def test_a_dictionary_is_as_good_as_answers(answers):
    """`advise` takes either, and gives the recommendation with what it needs."""
    found = advise(answers)
    one = found.recommendation
    assert (str(one.composition), one.estimate.fits, found.fits) == ("sft+lora", "fits", True)


def test_every_fault_is_named():
    """All unknown keys and values come in one error, with the nearest known name."""
    with pytest.raises(AdviseError) as caught:
        Answers.from_dict({"tsk": "qa", "task": "reasonin", "gpu": {"nam": "H100"}})
    hints = [fault.hint for fault in caught.value.faults]
    assert hints == [f"did you mean '{name}'?" for name in ("task", "reasoning", "name")]
    assert caught.value.exit_code == 2
    with pytest.raises(AdviseError, match="task is not stated"):
        advise({"gpu": "unknown"})


def test_the_guide_alone_and_own_rules(capsys):
    """`rules` takes what --rules takes; nothing is printed, warnings are in the advice."""
    assert advise(QUESTION, rules=["document"]).layers == ("document",)
    own = ROOT / "examples" / "acme" / "acme.yaml"
    assert advise(QUESTION, rules=[own]).rules_digest != advise(QUESTION).rules_digest
    assert capsys.readouterr() == ("", "")


def test_what_does_not_exist_is_no_attribute():
    """`advisor` has the documented names and no others."""
    with pytest.raises(AttributeError, match="no attribute 'advice_on'"):
        _ = advisor.advice_on
    assert all(getattr(advisor, name) for name in advisor.__all__)
    documented = (ROOT / "docs" / "programs.md").read_text()
    assert {name for name in advisor.__all__ if name not in documented} <= {"__version__"}


def test_importing_the_package_loads_nothing():
    """`import advisor` costs nothing before the first use."""
    code = (
        "import sys, advisor\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('advisor', 'yaml', 'click')])"
    )
    assert python(code) == "['advisor.ground', 'advisor.ground.version', 'advisor']\n"


ALONE = """
import sys

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {*sys.stdlib_module_names, "advisor", "yaml", "_yaml", "msgspec"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NothingElse())
import json
from advisor.api import AdviseError, advise, advise_document
from advisor.render.answer.page import page_of

answers = json.loads(sys.argv[1])
document = advise_document(answers)
page = page_of(advise(answers))
try:
    advise({"task": "customer_servise"})
except AdviseError as error:
    near = str(error)
chosen = document["recommendation"]["composition"]
print(json.dumps([chosen, document["plan"]["model"], len(page.sections) > 3, near]))
"""


def test_an_answer_needs_no_other_package(tmp_path):
    """Data, model, plan and misspelt values need no package but PyYAML and msgspec."""
    (tmp_path / "rows.jsonl").write_text(PAIRS)
    data = {"task": "customer_service", "data": str(tmp_path / "rows.jsonl"), "depth": "style"}
    chosen, model, sections, near = json.loads(python(ALONE, json.dumps({**QUESTION, **data})))
    assert (chosen, model, sections) == ("sft+lora", "Qwen/Qwen3-8B", True)
    assert "did you mean 'customer_service'?" in near
