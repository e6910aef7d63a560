"""`advise check` of Python code that trains: what it says literally, what it leaves open, and what
to change in it. Nothing of it is run.
"""

import json
import re
import time
from pathlib import Path
from random import Random

import pytest

from advisor.extras.other_tools import script
from advisor.extras.other_tools.read import read_any
from advisor.extras.other_tools.report import ConfigurationReport
from advisor.ground.errors import InputError
from advisor.probe import stated_hardware

HEAD = """\
import os, torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, Trainer, TrainingArguments
from trl import DPOConfig, DPOTrainer, GRPOConfig, GRPOTrainer, SFTConfig, SFTTrainer
"""
SFT = (
    HEAD
    + """\
MODEL = "Qwen/Qwen2.5-7B-Instruct"
BATCH = 16
bnb = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4")
model = AutoModelForCausalLM.from_pretrained(MODEL, quantization_config=bnb)
args = SFTConfig(
    output_dir="out",
    per_device_train_batch_size=BATCH,
    gradient_accumulation_steps=32 // BATCH,
    learning_rate=2e-4,  # as in the paper
    max_length=4096,
    bf16=True,
)
trainer = SFTTrainer(
    model=model,
    args=args,
    train_dataset=load_dataset("acme/tickets", split="train"),
    peft_config=LoraConfig(r=32, target_modules="all-linear"),
)
trainer.train()
"""
)
UNSLOTH = [
    "%%capture\n!pip install unsloth",
    """\
from unsloth import FastLanguageModel
max_seq_length = 2048
model, tokenizer = FastLanguageModel.from_pretrained(
    model_name = "unsloth/Qwen2.5-7B-Instruct",
    max_seq_length = max_seq_length,
    load_in_4bit = True,
)""",
    """\
model = FastLanguageModel.get_peft_model(
    model, r = 16, lora_alpha = 16, use_gradient_checkpointing = "unsloth"
)""",
    "# Training\ngpu = torch.cuda.get_device_properties(0)\n!nvidia-smi",
    """\
from trl import SFTTrainer, SFTConfig
from unsloth import is_bfloat16_supported
trainer = SFTTrainer(
    model = model,
    tokenizer = tokenizer,
    train_dataset = dataset,
    args = SFTConfig(
        per_device_train_batch_size = 16,
        gradient_accumulation_steps = 1,
        max_steps = 60,
        bf16 = is_bfloat16_supported(),
        fp16 = not is_bfloat16_supported(),
    ),
)""",
]


def notebook(cells):
    """Code cells, each with an output."""
    output = {"output_type": "stream", "name": "stdout", "text": ["größer\n"]}
    made = [
        {
            "cell_type": "code", "execution_count": 1, "metadata": {"id": str(place)},
            "outputs": [output], "source": cell.splitlines(keepends=True),
        }
        for place, cell in enumerate(cells)
    ]  # fmt: skip
    title = {"cell_type": "markdown", "metadata": {}, "source": ["# SFTTrainer(model='no')"]}
    top = {"cells": [title, *made], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(top, indent=1, ensure_ascii=False) + "\n"


@pytest.fixture
def check(call):
    """Writes a file, and runs `advise check FILE --json ...` -> exit code, document."""

    def run(text, *arguments, name="train.py", gpu="RTX 4090"):
        Path(name).write_text(text, "utf-8")
        code, out, err = call("check", name, "--gpu", gpu, "--json", *arguments)
        return code, json.loads(out or err)

    return run


def values(document):
    """Key -> value of what was found."""
    return {key: one["value"] for key, one in document["found"].items()}


def test_a_script_is_judged_as_a_configuration_with_the_line_of_each_value(check):
    """Names, calls in calls, arithmetic: value and line. The change that fits is a diff, and what
    `--fix` writes fits."""
    code, found = check(SFT)
    assert (code, found["checked"], found["verdict"]) == (3, "script", "too_big")
    lines = {key: one["line"] for key, one in found["found"].items()}
    expected = {
        "model_name_or_path": ("Qwen/Qwen2.5-7B-Instruct", 6),
        "per_device_train_batch_size": (16, 7),
        "gradient_accumulation_steps": (2, 13),
        "max_length": (4096, 15),
        "bf16": (True, 16),
        "load_in_4bit": (True, 8),
        "lora_r": (32, 22),
        "lora_target_modules": ("all-linear", 22),
        "dataset_name": ("acme/tickets", 21),
    }
    assert {key: (values(found)[key], lines[key]) for key in expected} == expected
    assert found["unknown"] == []
    assert (found["plan"]["quantization"], found["plan"]["rank"]) == ("nf4", 32)
    assert found["plan"]["alpha"] == 8  # PEFT's default, not that of TRL's command line
    assert {"-BATCH = 16", "+BATCH = 4"} <= set(found["diff"])
    code, fixed = check(SFT, "--fix", "fixed.py")
    assert (code, fixed["fits_after"]) == (0, "fits")
    # What follows from the constant is left alone.
    assert Path("fixed.py").read_text() == SFT.replace("BATCH = 16", "BATCH = 4")


PLAIN = (
    HEAD
    + """\
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen3-4B", dtype=torch.bfloat16)
model = get_peft_model(model, LoraConfig(r=16, target_modules="all-linear"))
tokens = AutoTokenizer.from_pretrained("Qwen/Qwen3-4B")
rows = load_dataset("a/b").map(lambda row: tokens(row["text"], truncation=True, max_length=8192))
args = TrainingArguments("out", per_device_train_batch_size=1, gradient_checkpointing=True)
Trainer(model=model, args=args, train_dataset=rows).train()
"""
)


def test_each_change_says_which_call_takes_it_and_what_takes_a_hand(check, call):
    """With its line; Liger's loss of transformers' Trainer, which is fused, comes before 4 bit."""
    _, found = check(PLAIN)
    assert found["change"] == {"use_liger_kernel": True}
    ways = {next(iter(one["change"])): one for one in found["ways"]}
    assert [*ways][:1] == ["use_liger_kernel"]
    assert ways["use_liger_kernel"]["at"] == {
        "use_liger_kernel": "a new argument of TrainingArguments, line 10"
    }
    assert ways["max_length"]["at"] == {"max_length": "line 9"}
    assert ways["load_in_4bit"]["at"]["load_in_4bit"].endswith("of from_pretrained, line 6")
    code, _ = check(PLAIN, "--fix", "fixed.py")
    assert (code, "use_liger_kernel=True)" in Path("fixed.py").read_text()) == (0, True)
    by_name = HEAD + "SFTTrainer(model='Qwen/Qwen3-14B', peft_config=LoraConfig(r=8))\n"
    code, found = check(by_name, gpu="RTX 3060")
    assert (code, found["diff"]) == (3, [])
    _, page, _ = call("check", "train.py", "--gpu", "RTX 3060")
    assert "Suggested changes, to be made by hand" in page
    assert "+ BitsAndBytesConfig(load_in_4bit=True)  # by hand: the code has no call yet" in page


BITS = "BitsAndBytesConfig(load_in_8bit=True)"


@pytest.mark.parametrize(
    ("split", "held"),
    [
        (".train_test_split(test_size=0.1, seed=1)", 0.1),
        (".train_test_split(0.2)", 0.2),
        (".train_test_split(train_size=0.7)", 0.3),
        (".train_test_split()", 0.25),
        ("", 0.0),
    ],
)
def test_rows_that_the_code_holds_out_and_when_it_saves_are_in_the_plan(check, split, held):
    """What a plan has no word for is named, and no default stands in its place."""
    text = (
        f"{HEAD}rows = load_dataset('a/b', split='train'){split}\n"
        "args = SFTConfig('o', save_strategy='{}', save_steps=50)\n"
        "SFTTrainer('Qwen/Qwen3-0.6B', args, train_dataset=rows['train'])\n"
    )
    _, found = check(text.format("steps"))
    assert (found["plan"]["holdout"], found["plan"]["save_steps"]) == (held, 50)
    assert found["not_carried"] == []
    _, found = check(text.format("epoch"))
    assert ("save_steps" in found["plan"], "save_steps" in found["no_effect_on_training"]) == (
        False, True,
    )  # fmt: skip
    assert [one["key"] for one in found["not_carried"]] == ["save_strategy"]


def test_texts_with_a_label_count_as_the_plain_texts_that_are_trained(check):
    """Without the label and without a chat template, unless the code writes the label into them; a
    head that sorts is no training that a plan can hold."""
    Path("t.csv").write_text(
        "text,label\n" + "".join(f"Parcel {n} is late,{'ab'[n % 2]}\n" for n in range(200))
    )
    text = HEAD + (
        "m = AutoModelForCausalLM.from_pretrained('Qwen/Qwen3-0.6B', dtype=torch.bfloat16)\n"
        "rows = load_dataset('csv', data_files='t.csv', split='train')\n"
        "rows = rows.map(lambda row: tokens({}, truncation=True, max_length=64))\n"
        "Trainer(m, TrainingArguments('o'), train_dataset=rows)\n"
    )
    _, plain = check(text.format("row['text']"))
    _, labelled = check(text.format("row['text'] + row['label']"))
    assert [one["plan"]["objective"] for one in (plain, labelled)] == ["cpt", "sft"]
    assert any("without a chat template" in note for note in plain["notes"])
    head = text.replace("AutoModelForCausalLM", "AutoModelForSequenceClassification")
    _, found = check(head.format("row['text']"))
    lost = {one["key"]: one["why"] for one in found["not_carried"]}
    assert lost["trainer"].endswith("another training")


LOADED = "model = AutoModelForCausalLM.from_pretrained('Qwen/Qwen3-32B', {})"
TRAINED = """\
args = SFTConfig("o", max_length=512, per_device_train_batch_size=1, learning_rate=2e-4)
SFTTrainer(model, args, peft_config=LoraConfig(r=8, target_modules="all-linear"))
"""


@pytest.mark.parametrize(
    "before",
    [
        f"bits = {BITS}\n" + LOADED.format("quantization_config=bits"),
        f"more = {{'quantization_config': {BITS}}}\n" + LOADED.format("**more"),
        LOADED.format("dtype='bfloat16', quantization_config=None"),
        LOADED.format("dtype='bfloat16'"),
    ],
    ids=["8 bit", "handed on", "none", "not named"],
)  # fmt: skip
def test_a_base_in_4_bit_is_written_as_the_only_quantisation(check, before):
    """transformers 5 takes it in no other way; the class is imported if it was not."""
    head = HEAD.replace(", BitsAndBytesConfig", "") if "BitsAndBytes" not in before else HEAD
    code, _ = check(f"{head}{before}\n{TRAINED}", "--fix", "fixed.py")
    text = Path("fixed.py").read_text()
    assert (code, text.count("quantization_config")) == (0, 1)
    assert (text.count("load_in_4bit=True"), "load_in_8bit=True" in text) == (1, False)
    assert text.count("BitsAndBytesConfig") == 2


def test_a_notebook_is_read_cell_by_cell_and_written_back_with_its_outputs(check):
    """Magics and shell lines are left out; a place is a cell and a line in it; Unsloth's own way
    to keep activations and its loss count."""
    code, found = check(notebook(UNSLOTH), name="train.ipynb", gpu="RTX 3060")
    assert (code, found["unknown"][0]["key"]) == (3, "dataset_name")
    assert found["found"]["per_device_train_batch_size"] == {"value": 16, "line": 8, "cell": 6}
    assert (found["found"]["model_name_or_path"]["cell"], values(found)["max_length"]) == (3, 2048)
    assert (values(found)["bf16"], values(found)["fp16"]) == (True, False)
    assert (found["release"], found["diff"][0]) == ("2026.8", "--- train.ipynb cell 6")
    code, _ = check(notebook(UNSLOTH), "--fix", "fixed.ipynb", name="train.ipynb", gpu="RTX 3060")
    assert code == 0
    before, after = (
        json.loads(Path(name).read_text("utf-8")) for name in ("train.ipynb", "fixed.ipynb")
    )
    changed = [
        place
        for place, (old, new) in enumerate(zip(before["cells"], after["cells"], strict=True))
        if old != new
    ]
    assert changed == [5]
    assert after["cells"][5] == before["cells"][5] | {"source": after["cells"][5]["source"]}
    assert "        gradient_accumulation_steps = 4,\n" in after["cells"][5]["source"]


ARGS = "SFTTrainer(model='Qwen/Qwen3-0.6B', args=SFTConfig(output_dir='o', {}))"
KEY = "per_device_train_batch_size"
SHAPES = {  # code before `per_device_train_batch_size=N` -> what N is found to be
    "sum": ("N = 2 + 3 * 2", 8),
    "dictionary": ("C = {'a': {'n': 3}}\nN = C['a']['n']", 3),
    "get": ("C = dict(n=3)\nN = C.get('n', 1)", 3),
    "later-key": ("C = {'n': 1}\nC['n'] = 5\nN = C['n']", 5),
    "class": ("class C:\n    n = 6\nN = C.n", 6),
    "object": ("class C:\n    def __init__(self, n=6):\n        self.n = n\nN = C(n=7).n", 7),
    "dataclass": ("@dataclass\nclass C:\n    n: int = 6\nc = C()\nN = c.n", 6),
    "flag": ("p = ArgumentParser()\np.add_argument('--n', default=9)\nN = p.parse_args().n", 9),
    "environment": ("N = int(os.environ.get('N', '12'))", 12),
    "branch": ("BIG = False\nif BIG:\n    N = 4\nelse:\n    N = 2", 2),
    "either": ("N = 4 if torch.cuda.is_bf16_supported() else 2", 4),
    "last": ("N = 4\nN = 2", 2),
    "function": ("def f(n=2):\n    return n\nN = f(n=5)", 5),
    "unpacked": ("N, M = 3, 4", 3),
    "text": ("N = int(f'{1}{2}')", 12),
    "asdict": ("@dataclass\nclass C:\n    n: int = 6\nN = asdict(C(n=3))['n']", 3),
    "words": ("p = ArgumentParser()\np.add_argument('--n', default=9)\nN = p.parse_args(['--n', '3']).n", 3),
    "set-later": ("class C:\n    n = 6\nc = C()\nc.n = 2\nN = c.n", 2),
    "method": ("class C:\n    def a(self):\n        self.n = 5\n    def b(self):\n"
        "        return self.n\nN = C().b()", 5),
    "option": ("def f(n=Option(4)):\n    return n\nN = f()", 4),
    "left-out": ("def train(n=4):\n    return n\nmodel.train(7)\nN = train()", 4),
}  # fmt: skip
OPEN = {  # the same, where it is not known -> a part of the reason
    "sometimes": ("class C:\n    n = 6\nc = C()\nif cond():\n    c.n = 2\nN = c.n", "set under a condition"),
    "several": ("if cond():\n    N = 4\nelse:\n    N = 2", "chooses between 2 or 4 (line 7; line 9)"),
    "read": ("N = int(open('n').read())", "is not computed"),
    "loop": ("for N in (1, 2):\n    pass", "a loop"),
    "required": ("p = argparse.ArgumentParser()\np.add_argument('--n', required=True)\nN = p.parse_args().n", "--n"),
    "imported": ("from settings import N", "comes from settings.N"),
    "power": ("N = 10 ** 10 ** 10", "is not computed"),
    "itself": ("N = N + 1", "no further|assigned nowhere"),
    "deep": ("N = " + "-" * 300 + "1", "no further"),
}  # fmt: skip


@pytest.mark.parametrize(("before", "wanted"), SHAPES.values(), ids=SHAPES)
def test_a_value_is_followed_to_where_it_stands(check, before, wanted):
    """Through names, maps, classes, functions, flags and branches that the code decides."""
    _, found = check(f"{HEAD}{before}\n{ARGS.format(f'{KEY}=N')}\n")
    assert (values(found)[KEY], KEY in {one["key"] for one in found["unknown"]}) == (wanted, False)


@pytest.mark.parametrize(("before", "why"), OPEN.values(), ids=OPEN)
def test_what_is_not_literal_is_named_and_widens_the_band(check, before, why):
    """With its line and the reason. It is not taken for the default: the band holds both ends."""
    text = f"{HEAD}{before}\n{ARGS.format(f'{KEY}=N')}\n"
    _, found = check(text)
    _, plain = check(text.replace(f"{KEY}=N", f"{KEY}=8"))
    unknown = {one["key"]: one for one in found["unknown"]}
    assert any(part in unknown[KEY]["why"] for part in why.split("|"))
    assert unknown[KEY]["line"] is not None
    assert KEY not in found["found"]
    assert found["memory"]["need_low_gib"] < plain["memory"]["need_low_gib"]


def test_whether_it_fits_may_hang_on_what_is_not_known(check, call):
    """Then it is not known whether it fits, and the page says with which values it does."""
    code, found = check(SFT.replace("BATCH = 16", "BATCH = int(input())"))
    assert (code, found["verdict"]) == (0, "unknown")
    lost = {one["key"]: one["why"] for one in found["not_carried"]}
    assert lost[KEY].endswith("; a default stands in the plan")
    assert "with per_device_train_batch_size: 1 it needs about" in found["summary"]
    _, page, _ = call("check", "train.py", "--gpu", "RTX 4090")
    said = " ".join(page.split())
    assert "per_device_train_batch_size (line 7, counted as 8), gradient_accumulation_steps" in said


TRAINERS = {
    "dpo": ("DPOTrainer(model=m, args=DPOConfig(output_dir='o', max_length=512))", "dpo", "dpo"),
    "grpo": ("GRPOTrainer(model=m, reward_funcs=[f], args=GRPOConfig(num_generations=4))", "grpo", "grpo"),
    "plain": ("Trainer(m, TrainingArguments('o', per_device_train_batch_size=2))", "sft", "sft"),
    "own": ("class Mine(SFTTrainer):\n    pass\nMine(model=m, args=SFTConfig())", "sft", "sft"),
}  # fmt: skip


@pytest.mark.parametrize(("built", "command", "objective"), TRAINERS.values(), ids=TRAINERS)
def test_the_trainer_that_is_built_decides_the_method(check, built, command, objective):
    """Also a class of the code's own; of several the first, and the others are counted."""
    text = f"{HEAD}m = AutoModelForCausalLM.from_pretrained('Qwen/Qwen3-0.6B', dtype='bfloat16')\n{built}\n"
    _, found = check(text)
    assert (found["command"], found["plan"]["objective"]) == (command, objective)
    assert found["plan"]["update"] == "full"
    _, more = check(text + "SFTTrainer(model=m)\n")
    assert any("another trainer is built (line " in note for note in more["notes"])


def test_the_trainer_that_is_reached_first_is_read(check):
    """Not the one that stands first: a function that nothing calls comes last."""
    text = f"""{HEAD}
def unused():
    DPOTrainer(model="Qwen/Qwen3-0.6B", args=DPOConfig({KEY}=1))
def second():
    SFTTrainer(model="Qwen/Qwen3-0.6B", args=SFTConfig({KEY}=2))
def first():
    GRPOTrainer(model="Qwen/Qwen3-0.6B", args=GRPOConfig({KEY}=3))
def main(mode="both"):
    if mode == "both":
        first()
    second()
main()
"""
    _, found = check(text)
    assert (found["command"], values(found)[KEY]) == ("grpo", 3)
    assert any("2 more are built (line 10; line 8)" in note for note in found["notes"])


SETTINGS = {  # code before SFTTrainer(..., args=A) -> what its batch is
    "set-later": ("A = SFTConfig(per_device_train_batch_size=8)\nA.per_device_train_batch_size = 2", 2),
    "map": ("C = {'per_device_train_batch_size': 8}\nC.update(per_device_train_batch_size=2)\nA = SFTConfig(**C)", 2),
    "replaced": ("B = SFTConfig(per_device_train_batch_size=8)\nA = replace(B, per_device_train_batch_size=2)", 2),
    "made": ("def made(n):\n    return SFTConfig(per_device_train_batch_size=n)\nA = made(2)", 2),
    "own": ("class Mine(SFTConfig):\n    per_device_train_batch_size: int = 2\nA = Mine()", 2),
    "other": ("B = SFTConfig(per_device_train_batch_size=8)\nA = other(B)", None),
    "parsed": ("A = HfArgumentParser(SFTConfig).parse_args_into_dataclasses()[0]", None),
}  # fmt: skip


@pytest.mark.parametrize(("before", "wanted"), SETTINGS.values(), ids=SETTINGS)
def test_the_object_of_settings_is_followed(check, before, wanted):
    """However it is made and changed; None: it is named as not known, and no other one is taken."""
    _, found = check(f"{HEAD}{before}\nSFTTrainer(model='Qwen/Qwen3-0.6B', args=A)\n")
    assert values(found).get(KEY) == wanted
    assert (KEY in {one["key"] for one in found["unknown"]}) == (wanted is None)


def test_a_vllm_in_the_process_and_16_bit_formats_count(check):
    """Unsloth's vLLM holds the weights together with the trainer; fp16 is no float32."""
    load = (
        "from unsloth import FastLanguageModel\n"
        "m, t = FastLanguageModel.from_pretrained('Qwen/Qwen3-8B'{})\n"
        "m = FastLanguageModel.get_peft_model(m, r=8)"
    )
    fast = ", fast_inference=True, gpu_memory_utilization=0.6"
    grpo = "GRPOTrainer(model=m, reward_funcs=[f], args=GRPOConfig(fp16=True, num_generations=4{}))"
    served = {}
    for name, own, more in (("no", "", ""), ("trl", "", ", use_vllm=True"), ("unsloth", fast, "")):
        _, found = check(f"{HEAD}{load.format(own)}\n{grpo.format(more)}\n", gpu="T4")
        plan, terms = found["plan"], found["memory"]["terms"]
        assert (plan["weights_dtype"], plan["precision"]) == ("float16", "mixed")
        served[name] = sum(one["gib"] for one in terms if "vLLM" in one["name"])
    assert served["no"] == 0
    assert 3 < served["unsloth"] < 0.6 * 15


def test_adapters_are_followed_around_the_model(check):
    """get_peft_model, prepare_model_for_kbit_training, and what is set on the settings later."""
    text = (
        HEAD
        + """\
def load(name):
    model = AutoModelForCausalLM.from_pretrained(name, load_in_8bit=True)
    model = prepare_model_for_kbit_training(model)
    return get_peft_model(model, LoraConfig(r=64))

def main():
    model = load("meta-llama/Llama-3.1-8B")
    options = dict(per_device_train_batch_size=1, fp16=True)
    args = TrainingArguments("out", **options)
    args.gradient_accumulation_steps = 32
    rows = load_dataset("json", data_files="rows.jsonl")["train"].map(
        lambda row: tok(row["text"], truncation=True, max_length=768)
    )
    Trainer(model=model, args=args, train_dataset=rows).train()

if __name__ == "__main__":
    main()
"""
    )
    _, found = check(text)
    wanted = {
        "model_name_or_path": "meta-llama/Llama-3.1-8B", "load_in_8bit": True, "lora_r": 64,
        "per_device_train_batch_size": 1, "gradient_accumulation_steps": 32, "fp16": True,
        "max_length": 768, "gradient_checkpointing": True,
        "datasets": [{"path": "json", "data_files": "rows.jsonl"}],
    }  # fmt: skip
    assert ({key: values(found).get(key) for key in wanted}, found["unknown"]) == (wanted, [])


REFUSED = {
    "python2": ("print 'hello'\n", "train.py:1", "Python 2"),
    "broken": ("x = (1,\n", "train.py:1", "no Python code"),
    "zero": ("x = 1\0\n", "train.py:1", "contains a NUL byte"),
    "nothing": ("print('hello')\n", "train.py", "nothing in it starts a tool"),
    "deep": ("(" * 500 + ")" * 500, "train.py:1", "no Python code"),
    "chain": ("x = a" + ".b" * 5000, "train.py", "nothing in it starts|nested too deep"),
    "elifs": ("if a: pass\n" + "elif b: pass\n" * 3000, "train.py", "nested too deep"),
}


@pytest.mark.parametrize(("text", "where", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_training_in_python_is_refused_with_its_place(check, text, where, said):
    """Exit code 2, never a traceback."""
    code, found = check(text)
    (error,) = found["error"]["faults"] if "faults" in found["error"] else [found["error"]]
    shown = json.dumps(error)
    assert (code, where in shown, any(part in shown for part in said.split("|"))) == (2, True, True)


def test_code_that_is_not_there_is_not_taken_for_data(call):
    """The path is at fault, and not the GPU that was named."""
    code, _, told = call("check", "nowhere.py", "--gpu", "T4")
    assert (code, "nowhere.py: cannot be read: No such file" in told) == (2, True)


FLAGS = """\
import argparse
from trl import SFTConfig, SFTTrainer
p = argparse.ArgumentParser()
p.add_argument("--model")
p.add_argument("--batch", type=int, default=8)
a = p.parse_args()
SFTTrainer(a.model, args=SFTConfig(per_device_train_batch_size=a.batch, max_length=512))
"""
COMMAND = "accelerate launch train.py \\\n  --batch 2 --model Qwen/Qwen3-0.6B"


def test_a_script_is_read_once_and_keeps_the_model_that_it_names(check, monkeypatch):
    """The GPU is looked at while the code is read; `--model` is for code that names none."""
    reads, read = [], script.source_of

    def counted(*arguments, **more):
        reads.append(arguments[0])
        return read(*arguments, **more)

    monkeypatch.setattr(script, "source_of", counted)
    assert check(SFT)[0] == 3
    assert reads.count(SFT) == 1  # and once as its diff would make it
    code, found = check(SFT, "--model", "Qwen/Qwen3-0.6B")
    assert (code, found["error"][0]["where"]) == (2, "--model")


def test_the_flags_of_a_command_line_count(check, call):
    """In a shell script beside the code, in a cell that starts a script which another writes, and
    of TRL's own scripts and its command; `--model` where nothing names the model."""
    code, found = check(FLAGS)
    assert (code, found["verdict"]) == (0, "unknown")
    assert "--model NAME says it" in found["summary"]
    _, found = check(FLAGS, "--model", "Qwen/Qwen3-0.6B")
    assert found["plan"]["model"] == "Qwen/Qwen3-0.6B"
    assert any("(--batch, line 5)" in note for note in found["notes"])
    cells = [f"%%writefile train.py\n{FLAGS}", f"!{COMMAND}"]
    for text, name in ((COMMAND, "run.sh"), (notebook(cells), "run.ipynb")):
        _, found = check(text, name=name)
        expected = ("Qwen/Qwen3-0.6B", 2)
        assert tuple(values(found)[key] for key in ("model_name_or_path", KEY)) == expected
        assert not any("(--batch, line 5)" in note for note in found["notes"])
        assert found["diff"] == []
    trl = "--model_name_or_path Qwen/Qwen3-0.6B --dataset_name acme/x --use_peft --lora_r 4"
    for text, name in (
        (f"python examples/scripts/sft.py {trl}", "run.sh"),
        (notebook(["%%bash\ncd x\n", f"!trl sft {trl}"]), "run.ipynb"),
    ):
        _, found = check(text, name=name)
        assert (found["checked"], found["plan"]["rank"]) == ("configuration", 4)


PLAN = """\
version: 1
name: replies
model: Qwen/Qwen3-8B
data: {path: rows.jsonl}
stages:
  - {name: sft, objective: sft, update: lora, quantization: nf4, rank: 32, alpha: 64, micro_batch_size: 64,
     grad_accum: 2, learning_rate: 0.0002, max_steps: 50, seq_len: 2048, gradient_checkpointing: true}
launch: {device: cuda}
"""


@pytest.mark.parametrize("name", ["unsloth.yaml", "train.py"])
def test_the_files_for_unsloth_say_the_plan_that_they_were_written_from(call, name):
    """Read back; and their changes are made in their own words, with the comments kept."""
    Path("plan.yaml").write_text(PLAN)
    Path("rows.jsonl").write_text('{"prompt": "Where is it?", "completion": "Over there."}\n' * 90)
    call("export", "plan.yaml", "--to", "unsloth", "--out", "u")
    code, out, _ = call("check", f"u/{name}", "--gpu", "RTX 3060", "--json")
    found = json.loads(out)
    said = {
        "model": "Qwen/Qwen3-8B", "objective": "sft", "update": "lora", "quantization": "nf4",
        "rank": 32, "alpha": 64, "micro_batch_size": 64, "grad_accum": 2, "learning_rate": 0.0002,
        "max_steps": 50, "seq_len": 2048, "gradient_checkpointing": True, "loss_on": "answers",
    }  # fmt: skip
    assert ({key: found["plan"].get(key) for key in said}, code) == (said, 3)
    code, out, _ = call("check", f"u/{name}", "--gpu", "RTX 3060", "--fix", f"u/fixed-{name}")
    before, after = (Path("u", one).read_text().splitlines() for one in (name, f"fixed-{name}"))
    changed = [old for old, new in zip(before, after, strict=True) if old != new]
    assert {one.strip().split("=")[0].split(":")[0].removeprefix("per_device_train_") for one in changed} == {
        "batch_size", "gradient_accumulation_steps",
    }  # fmt: skip


GROWING = {
    "maps": "d = {}\n" + "".join(f"d['{n}'] = {{**d}}\n" for n in range(70)) + "N = d",
    "texts": "N = 'a'\n" + "N = f'{N}{N}'\n" * 70,
    "lists": "N = []\n" + "N = [N, N]\n" * 70,
    "branches": "".join(f"if c{n}:\n    N = {n}\n" for n in range(300)),
    "circle": "def f():\n    return g()\ndef g():\n    return f() + f()\nN = f()",
}


@pytest.mark.parametrize("before", GROWING.values(), ids=GROWING)
def test_what_doubles_at_each_step_is_given_up_soon(before):
    """As not known, within seconds."""
    text, started = f"{HEAD}{before}\n{ARGS.format(f'{KEY}=N')}\n", time.monotonic()
    found = read_any("train.py", text)
    assert KEY in found.left_out
    assert len(found.left_out[KEY].why) < 200
    assert time.monotonic() - started < 20


def test_no_changed_script_ends_in_a_traceback(tmp_path):
    """Lines dropped, doubled and swapped, words cut: each is judged, or refused with its place."""
    random, seen = Random(38), 0
    several = f"{HEAD}{OPEN['several'][0]}\n{ARGS.format(f'{KEY}=N')}"
    for round_ in range(240):
        text = (SFT, FLAGS, notebook(UNSLOTH), several)[round_ % 4]
        name = "train.ipynb" if text.startswith("{") else "train.py"
        words = re.split(r"(\w+)", text)  # every second one is a word
        for _ in range(random.randint(1, 3)):
            place, other = (random.randrange(1, len(words), 2) for _ in range(2))
            words[place] = random.choice((words[other], words[place] * 2, "0", "None", "[]", "*x"))
        try:
            found = read_any(tmp_path / name, "".join(words), bfloat16=lambda _: True)
        except InputError:
            continue
        seen += bool(found.told())
        ConfigurationReport(found, *stated_hardware("RTX 4090", from_flag=True))
    assert seen > 60


def test_what_is_not_said_or_not_known_is_named(check):
    """A keyword that nobody knows, an empty model, and a length that a map of arguments holds."""
    _, document = check(
        'model = AutoModelForCausalLM.from_pretrained("")\n'
        'cut = {"padding": "max_length", "truncation": True, "max_length": 256}\n'
        "rows = rows.map(lambda row: tokenizer(row, **cut))\n"
        "args = TrainingArguments(output_dir='out', colour=paint())\n"
        "Trainer(model=model, args=args, train_dataset=rows).train()\n"
    )
    assert document["found"]["max_length"]["value"] == 256
    assert {"model_name_or_path", "colour"} <= {one["key"] for one in document["unknown"]}


FRAMES = """\
Traceback (most recent call last):
  File "train.py", line 9, in <module>
    trainer.train()
  File "/env/transformers/trainer.py", line 2325, in train
    {}
"""
BACKWARD = FRAMES.format(
    'accelerator.backward(loss)\n  File "/env/torch/_tensor.py", line 5, in backward'
)
LOSS = FRAMES.format("loss = F.cross_entropy(logits, labels)")
NEW = (
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.50 GiB. GPU 1 has a total"
    " capacity of 23.50 GiB of which 1.25 GiB is free. Process 77 has 4.00 GiB memory in use."
    " Including non-PyTorch memory, this process has 18.25 GiB memory in use. Of the allocated"
    " memory 14.75 GiB is allocated by PyTorch, and 3.00 GiB is reserved by PyTorch but unallocated."
)
OLD = (
    "RuntimeError: CUDA out of memory. Tried to allocate 512.00 MiB (GPU 0; 15.78 GiB total"
    " capacity; 14.02 GiB already\nallocated; 256.00 MiB free; 14.52 GiB reserved in total by PyTorch)"
)
OLDEST = (
    "RuntimeError: CUDA out of memory. Tried to allocate 12.50 MiB (GPU 0; 10.92 GiB total"
    " capacity; 8.57 MiB already allocated; 9.28 GiB free; 4.68 MiB cached)"
)
TEXTS = {  # text -> fields of `out_of_memory`
    "new": (BACKWARD + NEW, {"kind": "torch", "moment": "backward", "device": 1, "tried_gib": 2.5,
        "total_gib": 23.5, "free_gib": 1.25, "allocated_gib": 14.75, "unallocated_gib": 3.0,
        "this_process_gib": 18.25, "processes_gib": [4.0]}),
    "old": (LOSS + OLD, {"moment": "loss", "tried_gib": 0.5, "total_gib": 15.78, "free_gib": 0.25,
        "unallocated_gib": 0.5}),
    "oldest": (OLDEST, {"moment": None, "free_gib": 9.28, "device": 0}),
    "cut-in-a-number": (NEW.replace("14.75", "14.\n75"), {"allocated_gib": 14.75}),
    "ranks": ("[rank0]: " + NEW + "\n[rank1]: " + NEW.replace("2.50", "9.00"), {"tried_gib": 2.5}),
    "step": (FRAMES.format("self.optimizer.step()") + NEW, {"moment": "optimizer step"}),
    "load": (FRAMES.format("AutoModel.from_pretrained(name)") + NEW, {"moment": "loading the model"}),
    "evaluate": (FRAMES.format('x\n  File "t.py", line 3, in evaluate\n    x') + NEW,
        {"moment": "evaluation or generation"}),
    "no-numbers": ("RuntimeError: CUDA error: out of memory", {"kind": "cuda_error"}),
    "bitsandbytes": ("Error: error out of memory at line 380 in file /x/pythonInterface.c",
        {"kind": "bitsandbytes"}),
    "vllm": ("ValueError: (8.00 GiB KV cache is needed, which is larger than the available KV cache"
        " memory (0.50 GiB).", {"kind": "vllm", "tried_gib": 8.0, "free_gib": 0.5}),
    "mps": ("RuntimeError: MPS backend out of memory (MPS allocated: 5.50 GB, other allocations:"
        " 14.76 GB, max allowed: 20.40 GB). Tried to allocate 128.00 MB on private pool.",
        {"kind": "mps", "tried_gib": 0.125, "total_gib": 20.4}),
    "killed": ("ERROR: failed (exitcode: -9) local_rank: 0", {"kind": "killed"}),
}  # fmt: skip


@pytest.mark.parametrize(("text", "wanted"), TEXTS.values(), ids=TEXTS)
def test_a_message_is_read_with_its_numbers_and_its_moment(call, text, wanted):
    """PyTorch's wording of each age, and the others'. Exit code 0; the page is sentences."""
    Path("error.txt").write_text(text)
    code, out, err = call("check", "error.txt", "--json")
    document = json.loads(out)
    assert (code, document["checked"], err) == (0, "script", "")
    found = document["out_of_memory"]
    near = {k: pytest.approx(one) if isinstance(one, float) else one for k, one in wanted.items()}
    assert {key: found[key] for key in wanted} == near
    _, page, _ = call("check", "error.txt")
    assert page.startswith("Ran out of memory")


def test_the_page_says_what_was_asked_for_what_there_was_and_what_to_do(call):
    """With what others hold, and what was reserved in pieces."""
    Path("error.log").write_text(BACKWARD + NEW)
    _, page, _ = call("check", "error.log")
    said = " ".join(page.split())
    assert "in the backward pass: it asked for 2.5 GiB and 1.25 GiB of 23.5 GiB were free." in said
    assert "PyTorch held 14.8 GiB in use, and 3 GiB reserved but not in use." in said
    assert "About 4 GiB are held by other processes" in said
    assert "expandable_segments:True" in said
    assert page.endswith("advise check train.py error.log\n")


def test_beside_a_script_the_memory_of_the_gpu_is_that_of_the_text(call):
    """In either order; a notebook says it by its own output; --gpu wins."""
    Path("train.py").write_text(SFT)
    Path("error.txt").write_text(BACKWARD + NEW)
    for files in (("train.py", "error.txt"), ("error.txt", "train.py")):
        code, out, _ = call("check", *files, "--json")
        document = json.loads(out)
        assert (code, document["verdict"], document["memory"]["limit_gib"]) == (3, "too_big", 23.5)
        assert document["out_of_memory"]["moment"] == "backward"
        assert "the GPU has 23.5. " in document["summary"]
    _, page, _ = call("check", "train.py", "error.txt", "--gpu", "H100")
    assert page.startswith("Ran out of memory in the backward pass: ")
    assert "the estimate says that it fits, and the error text that it did not" in " ".join(
        page.split()
    )
    cells = json.loads(notebook(UNSLOTH))
    cells["cells"][-1]["outputs"] = [
        {
            "output_type": "error",
            "ename": "E",
            "evalue": NEW,
            "traceback": [BACKWARD, f"\x1b[0;31m{NEW}"],
        }
    ]
    Path("train.ipynb").write_text(json.dumps(cells))
    _, out, _ = call("check", "train.ipynb", "--json")
    document = json.loads(out)
    assert (document["out_of_memory"]["free_gib"], document["memory"]["limit_gib"]) == (1.25, 23.5)


def test_a_text_that_is_data_stays_data(call):
    """Also if somebody in it writes about memory that ran out."""
    rows = "\n\n".join(f"Question {n}: why is CUDA out of memory?" for n in range(60))
    Path("rows.txt").write_text(rows)
    code, out, _ = call("check", "rows.txt", "--json")
    assert (code, "out_of_memory" in json.loads(out)) == (0, False)
