"""The key tables against the tools themselves: made again they are the same, and whatever is right
or wrong with a file is so for us as for the tool's own parser.

Run with environments that hold the tools (docs/other_tools.md):

    ADVISE_LLAMA_FACTORY=.../bin/llamafactory-cli ADVISE_AXOLOTL=.../bin/python \
        ADVISE_TOOL_EXAMPLES=DIR pytest -m long tests/other_tools/test_tables_long.py

DIR holds the unpacked source distributions, in folders called llamafactory and axolotl. TRL is
taken from the environment of the tests; its source distribution brings no configuration.
"""

import os
import random
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import yaml

from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.other_tools.reading.file import read_file
from advisor.other_tools.tables.keys import newest
from tools.other_tools.probe.trials import VALUES
from tools.other_tools.table import probe, refusals, written

pytestmark = pytest.mark.long

TOOLS = ("trl", "llamafactory", "axolotl")
EXAMPLES = {"llamafactory": 45, "axolotl": 250}  # files that train something, at least
# A refusal that says which package this environment lacks is none of the file.
NOT_HERE = ("ImportError", "ModuleNotFoundError", "PackageNotFoundError")
KINDS = [kind for kind in VALUES if kind != "other"]
BASES = {
    "trl": {"model_name_or_path": "a/b", "dataset_name": "c/d", "output_dir": "out"},
    "llamafactory": {
        "model_name_or_path": "a/b", "stage": "sft", "do_train": True, "dataset": "c",
        "template": "qwen3", "finetuning_type": "lora", "output_dir": "out",
    },
    "axolotl": {
        "base_model": "a/b", "datasets": [{"path": "c/d", "type": "alpaca"}], "adapter": "lora",
        "learning_rate": 0.0001, "micro_batch_size": 1, "gradient_accumulation_steps": 1,
        "num_epochs": 1, "output_dir": "out",
    },
}  # fmt: skip
COMMANDS = {"trl": ("sft", "dpo", "grpo"), "llamafactory": ("train",), "axolotl": ("train",)}


def python_of(tool):
    """The Python of an environment with the tool; skips if none is named."""
    if tool == "trl":
        try:
            version("trl")
        except PackageNotFoundError:
            pytest.skip("trl is not installed")
        return sys.executable
    name = {"llamafactory": "ADVISE_LLAMA_FACTORY", "axolotl": "ADVISE_AXOLOTL"}[tool]
    named = os.environ.get(name)
    if not named:
        pytest.skip(f"{name} names no environment")
    return str(Path(named).with_name("python"))


@pytest.mark.parametrize("tool", TOOLS)
def test_a_table_made_again_is_the_same(tool):
    """The shipped table is what the command writes for that release."""
    table = probe(tool, python_of(tool))
    path = rules_dir() / "tools" / tool / f"{table['release']}.yaml"
    assert path.read_text("utf-8") == written(table, schema="../../schema")


def errors_of(file):
    """The faults for which we say that the tool refuses the file."""
    return [fault for fault in file.faults if fault.severity == "error"]


@pytest.mark.parametrize("tool", EXAMPLES)
def test_example_files_are_judged_as_the_tool_judges_them(tool):
    """Each file that the tool's makers ship is refused by us if the tool refuses it."""
    folder = os.environ.get("ADVISE_TOOL_EXAMPLES")
    if not folder:
        pytest.skip("ADVISE_TOOL_EXAMPLES names no folder")
    python = python_of(tool)
    files = []
    for path in sorted((Path(folder) / tool).rglob("*.y*ml")):
        try:
            files.append(read_file(path))
        except InputError:
            continue  # of another purpose: it is told which
    assert {file.tool for file in files} == {tool}
    assert len(files) >= EXAMPLES[tool]
    said = refusals(
        tool, python, [(file.path.read_text("utf-8"), file.command.name) for file in files]
    )
    judged = [
        (file, refusal)
        for file, refusal in zip(files, said, strict=True)
        # What only keys together make wrong is judged by the findings of rules/tools/TOOL.yaml.
        if not refusal.startswith((*NOT_HERE, "together"))
    ]
    assert len(judged) > 0.8 * len(files)
    wrong = [
        f"{file.path}: the tool says {refusal!r}, we {errors_of(file)}"
        for file, refusal in judged
        if bool(refusal) != bool(errors_of(file))
    ]
    assert not wrong, "\n".join(wrong)


def misspelt(key):
    """The key without one letter of its middle."""
    middle = len(key) // 2
    return key[:middle] + key[middle + 1 :]


def mutations(tool, command):
    """(key that is wrong, its value, file): each key misspelt, and with values of other kinds."""
    pick = random.Random(f"{tool} {command}")
    table = newest(tool)
    from advisor.other_tools.tables.keys import keys_of

    for name, key in keys_of(table, command).items():
        if name in ("env", "plugins"):  # of no single kind: a map of variables, names of modules
            continue
        wrong = misspelt(name)
        if wrong not in keys_of(table, command):
            yield wrong, None, BASES[tool] | {wrong: 1}
        for kind in pick.sample(KINDS, 2):
            yield name, key, BASES[tool] | {name: VALUES[kind]}


@pytest.mark.parametrize(
    ("tool", "command"), [(tool, command) for tool in TOOLS for command in COMMANDS[tool]]
)
def test_each_key_misspelt_or_of_a_wrong_kind_is_found(tool, command, tmp_path):
    """Wherever the tool refuses a file for one key we say so, and where it takes a wrong one in
    silence we say that too.
    """
    python = python_of(tool)
    cases = list(mutations(tool, command))
    assert len(cases) > 500
    texts = [yaml.safe_dump(values) for _, _, values in cases]
    said = refusals(tool, python, [(text, command) for text in texts])
    path = tmp_path / "file.yaml"
    wrong = []
    for (name, key, values), text, refusal in zip(cases, texts, said, strict=True):
        path.write_text(text)
        faults = [
            fault
            for fault in read_file(path, tool=tool, command=command).faults
            if fault.key.split(".")[0] == name
        ]
        refused = any(fault.severity == "error" for fault in faults)
        about = f"{name}: {values[name]!r}"
        if key is None and not faults:
            wrong.append(f"{about}: misspelt, and not found")
        elif refusal.startswith((*NOT_HERE, "together")):
            continue
        elif refused and not refusal:
            wrong.append(f"{about}: the tool takes it, we say {faults[0].what}")
        elif refusal and not faults:
            wrong.append(f"{about}: the tool says {refusal!r}, we nothing")
    # Limits of single values that a table does not hold: a step count of 2.5, a file that is not there.
    assert len(wrong) <= 0.02 * len(cases), "\n".join(wrong)
    print(
        f"{len(cases)} files, {sum(map(bool, said))} refused by {tool}, unlike: {len(wrong)}",
        *wrong,
        sep="\n",
    )
