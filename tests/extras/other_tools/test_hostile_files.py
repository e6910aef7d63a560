"""Configurations made to harm: they end in an answer or a refusal, soon, and tell no secret."""

import contextlib
import io
import json
import os
import random
import re
import time

import pytest
import yaml
from rich.console import Console

from advisor.commands.output import print_json
from advisor.extras.other_tools.data_sets import locate_set
from advisor.extras.other_tools.file import command_line, read_file
from advisor.extras.other_tools.page import print_configuration, write_carried
from advisor.extras.other_tools.report import ConfigurationReport
from advisor.extras.other_tools.yaml_text import edited, steps
from advisor.ground.errors import AdviseError, InputError
from advisor.probe import stated_hardware
from tests.faults.fuzz.mutate import Mutator

TRL = {
    "model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "dataset_name": "acme/x", "use_peft": True,
    "learning_rate": 1e-4, "lora_r": 16,
}  # fmt: skip
LLAMAFACTORY = {
    "model_name_or_path": "Qwen/Qwen3-8B", "stage": "sft", "do_train": True, "lora_rank": 8,
    "finetuning_type": "lora", "dataset": "x", "template": "qwen3", "cutoff_len": 2048,
}  # fmt: skip
AXOLOTL = {
    "base_model": "NousResearch/Llama-2-7b-hf", "adapter": "qlora", "load_in_4bit": True,
    "learning_rate": 1e-4, "datasets": [{"path": "x.jsonl", "type": "alpaca"}], "lora_r": 8,
}  # fmt: skip
FILES = {"trl": TRL, "llamafactory": LLAMAFACTORY, "axolotl": AXOLOTL}
AX = "base_model: x\nadapter: lora\n"
SECRET = "hunter2-hunter2"


def said(path):
    """Everything that is said of a file: page, JSON, plan."""
    report = ConfigurationReport(read_file(path), stated_hardware("RTX 4090", from_flag=True)[0])
    page, document = io.StringIO(), io.StringIO()
    print_configuration(report, Console(file=page, width=80))
    with contextlib.redirect_stdout(document):
        print_json(report.document)
    assert json.loads(document.getvalue(), parse_constant=pytest.fail)
    parts = [page.getvalue(), document.getvalue()]
    plan = path.with_name("new.yaml")
    plan.unlink(missing_ok=True)
    if report.carried is not None:
        parts += [*write_carried(report, plan), plan.read_text("utf-8")]
    return "\n".join(parts)


def written(folder, text, name="job.yaml"):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")
    return path


@pytest.fixture
def soon():
    """Fails if the test computes for long: what is tried here took minutes."""
    began_s = time.process_time()
    yield
    assert time.process_time() - began_s < 20


def laughs(first, each):
    """Aliases of aliases: each line doubles what is meant."""
    return AX + first + "".join(each.format(at, at - 1) for at in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        AX + "<<: &a [*a]\n",
        AX + "z: {<<: &a [*a, *a]}\n",
        laughs("a0: &a0 [1, 1]\n", "a{0}: &a{0} [*a{1}, *a{1}]\n"),
        laughs("a0: &a0 {k: v}\n", "a{0}: &a{0} [*a{1}, *a{1}]\n") + "z: {<<: *a39}\n",
        laughs("a0: &a0 {k: v}\n", "a{0}: &a{0} {{<<: [*a{1}, *a{1}]}}\n"),
    ],
)
def test_aliases_without_end_are_told(tmp_path, soon, text):
    """A merge of a list that holds itself, and a billion values of forty lines."""
    try:
        assert read_file(written(tmp_path, text)).values["a39"] == {"k": "v"}
    except InputError as refused:
        assert re.search("aliases followed|not valid YAML", str(refused))  # noqa: PT017 - or this


@pytest.mark.parametrize("tool", FILES)
def test_thousands_of_misspelt_keys_are_answered_soon(tmp_path, soon, tool):
    more = {f"lora_alph{number}": 1 for number in range(1200)}
    assert "lora_alph0" in said(written(tmp_path, FILES[tool] | more))


def test_thousands_of_flags_and_many_changes_of_a_long_text_are_read_and_made_soon(soon):
    """Each change parses the text: beyond some work it is written anew, with the same values."""
    flags = " ".join(f"--a{number} 1" for number in range(50_000))
    line = command_line(f"trl sft {flags} --lora-r 8")
    assert (line.flags["lora_r"], len(line.flags)) == (["8"], 50_001)
    values = {f"key{number}": number for number in range(3000)}
    changes = {f"key{number}": None for number in range(1500)}
    new = yaml.safe_load(edited(yaml.safe_dump(values), changes))
    assert new == {key: value for key, value in values.items() if key not in changes}


@pytest.mark.parametrize("key", ["²", "a.²", "datasets.²", "9" * 500, "", ".", "datasets.0.path"])
@pytest.mark.parametrize("tool", FILES)
def test_odd_names_of_keys_are_names(tmp_path, tool, key):
    """Only plain digits are a place in a list, and not thousands of them."""
    assert steps(key)
    assert said(written(tmp_path, FILES[tool] | {key: 1}))
    assert steps("9" * 5000) == ("9" * 5000,)


NUMBERS = {
    "trl": ("per_device_train_batch_size", "num_train_epochs", "save_steps", "max_grad_norm"),
    "llamafactory": ("cutoff_len", "lora_rank", "val_size", "warmup_steps", "adam_beta1"),
    "axolotl": ("micro_batch_size", "num_epochs", "sequence_len", "saves_per_epoch", "lora_alpha"),
}


@pytest.mark.parametrize("value", ["nan", ".inf", "1e400", "1e308", "1" + "0" * 40, "-5", "[[]]"])
@pytest.mark.parametrize(("tool", "key"), [(tool, key) for tool in FILES for key in NUMBERS[tool]])
def test_numbers_beyond_measure_are_not_carried(tmp_path, tool, key, value):
    text = yaml.safe_dump({name: one for name, one in FILES[tool].items() if name != key})
    assert said(written(tmp_path, f"{text}{key}: {value}\n"))


# --------------------------------------------------------------------------- secrets


@pytest.mark.parametrize("tool", FILES)
def test_a_secret_of_a_file_is_shown_nowhere(tmp_path, tool):
    """By its key, by one around it, by its form, behind a misspelt key beside it."""
    lines = [
        yaml.safe_dump(FILES[tool]),
        f"hub_token: {SECRET}  # private",
        f"wandb_api_key: '{SECRET}'",
        "lora_alfa: 3",
        f"hf_token: [{SECRET}]",
        f"mlflow_password: {{a: {SECRET}}}",
        f"run_name: hf_{'aB3' * 12}",
        f"output_dir: https://user:{SECRET}@host/x",
    ]
    found = said(written(tmp_path, "\n".join(lines)))
    assert SECRET not in found
    assert "aB3aB3" not in found
    assert "hub_token" in found


def test_a_key_that_is_there_twice_is_an_error_that_shows_no_value(tmp_path):
    """The place of the second one, and no secret."""
    text = f"{AX}hub_token: x\nhub_token: {SECRET}\n"
    with pytest.raises(InputError, match='duplicate key "hub_token') as refused:
        read_file(written(tmp_path, text))
    assert SECRET not in str(refused.value)
    assert refused.value.faults[0].where.endswith("job.yaml:4:1")


@pytest.mark.parametrize("name", ["job.sh", "job.yaml"])
def test_what_the_machine_holds_is_not_read(tmp_path, monkeypatch, name):
    """No variable of the environment is looked up: the text itself is shown."""
    monkeypatch.setenv("DATABASE_URL", f"postgres://u:{SECRET}@h/db")
    values = TRL | {"dataset_name": "${DATABASE_URL}"}
    flags = " ".join(f"--{key} {value}" for key, value in values.items())
    texts = {
        "job.sh": f"trl sft {flags} --hub_token {SECRET}\n",
        "job.yaml": yaml.safe_dump(values),
    }
    found = said(written(tmp_path, texts[name], name))
    assert SECRET not in found
    assert "${DATABASE_URL}" in found


# --------------------------------------------------------------------------- what data are named


def test_a_pattern_over_a_whole_disk_ends(tmp_path, soon):
    """The last part of a path alone may be a pattern, which finds its files."""
    (tmp_path / "data").mkdir()
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl"):
        (tmp_path / "data" / name).write_text("{}")
    file = read_file(written(tmp_path, TRL))
    found = locate_set(file, "json", files=["data/*.jsonl"])
    assert [path.name for path in found["files"]] == ["a.jsonl", "b.jsonl"]
    for pattern in ("/*/*/*/*/*/*/*/*", "../../../*/*/*/*/*/*", "**/**/**", "[[[[*", "*\0*"):
        locate_set(file, "json", files=[pattern])


@pytest.mark.parametrize("named", ["pipe", "/dev/zero", "/proc/self/mem", "loop", "..", "~nobody1"])
@pytest.mark.parametrize("tool", FILES)
def test_data_that_are_none_are_told(tmp_path, soon, tool, named):
    """A pipe, a device, a link to itself: nothing waits for them or reads them to their end."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    values = {
        "trl": TRL | {"dataset_name": named},
        "axolotl": AXOLOTL | {"datasets": [{"path": "json", "data_files": [named], "type": "x"}]},
        "llamafactory": LLAMAFACTORY | {"dataset": "d", "dataset_dir": "."},
    }[tool]
    written(tmp_path, {"d": {"file_name": named}}, "dataset_info.json")
    for more in ({}, {next(iter(values)): named}):
        assert said(written(tmp_path, values | more))


# --------------------------------------------------------------------------- mutations


@pytest.mark.parametrize(
    ("seed", "count", "least"),
    [(21, 40, 12), *(pytest.param(seed, 2500, 800, marks=pytest.mark.long) for seed in range(4))],
)
def test_no_mutated_file_ends_in_a_bug(tmp_path, monkeypatch, seed, count, least):
    """Page, JSON and plan of mutated files of the three tools."""
    monkeypatch.chdir(tmp_path)
    mutator, whole = Mutator(random.Random(seed)), list(FILES.values())
    path, answered = tmp_path / "job.yaml", 0
    for _ in range(count):
        changed = mutator.value(mutator.dice.choice(whole), whole)
        path.write_bytes(mutator.dice.choice((mutator.as_yaml, mutator.as_json))(changed))
        with contextlib.suppress(AdviseError):
            answered += bool(said(path))
    assert answered > least
