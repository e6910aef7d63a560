"""Advice needs PyYAML and Python's own library, and nothing else."""

import json
import subprocess
import sys

ALONE = """
import sys

class NothingElse:
    def find_spec(self, name, path=None, target=None):
        top = name.partition(".")[0]
        if top not in {*sys.stdlib_module_names, "advisor", "yaml", "_yaml"}:
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
    """A data file is read, a model looked up, a plan made and a misspelt value corrected with every
    package but PyYAML out of reach.
    """
    rows = "".join(f'{{"prompt": "What is {n}?", "completion": "{n}."}}\n' for n in range(300))
    data = tmp_path / "rows.jsonl"
    data.write_text(rows)
    answers = {
        "task": "customer_service", "data": str(data), "gpu": "RTX 4090",
        "model": "Qwen/Qwen3-8B", "depth": "style",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", ALONE, json.dumps(answers)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    chosen, model, has_sections, near = json.loads(done.stdout)
    assert (chosen, model, has_sections) == ("sft+lora", "Qwen/Qwen3-8B", True)
    assert "did you mean 'customer_service'?" in near
