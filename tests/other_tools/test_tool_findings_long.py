"""What rules say that a tool refuses, against the tool: it refuses those files, and the files that
are right beside them it takes.

Run as test_tables_long.py, with the same environments.
"""

from importlib import import_module

import pytest
import yaml

from advisor.other_tools.tables.mapping import COMMAND
from advisor.other_tools.tables.tool import tool_named
from tests.other_tools.finding_cases import CASES, values_of
from tests.other_tools.test_tables_long import NOT_HERE, TOOLS, python_of
from tools.other_tools.table import refusals

pytestmark = pytest.mark.long

LATER = {  # refused when the model, the tokenizer or the data are there, which no file of a test has
    "llamafactory/prompt-of-template", "axolotl/no-targets",
    *(f"trl/{name}" for name in (
        "no-data", "quantised-without-lora", "answers-of-no-conversation", "adapter-on-the-head",
        "padding-free-cuts-nothing", "packing-without-length", "selective-of-nothing",
        "router-of-no-mixture", "exo-without-smoothing", "weighting-of-aot", "divergence-of-loss",
        "reference-of-lora", "reference-kept-and-moved", "precomputed-of-a-stream", "kto-one-row",
        "kto-order",
    )),
}  # fmt: skip


@pytest.mark.parametrize("tool", TOOLS)
def test_the_tool_refuses_what_rules_say_it_refuses(tool):
    """Each file of a rule with `refused` is refused by the tool, the one beside it is not."""
    rules = [rule.id for rule in tool_named(tool).findings if rule.refused]
    asked = [name for name in rules if name not in LATER]
    assert len(asked) > 10
    cases = [(name, case, case is CASES[name][0]) for name in asked for case in CASES[name]]
    usual = "sft" if tool == "trl" else "train"
    files = [
        (yaml.safe_dump(values_of(tool, case)), case.get(COMMAND, usual)) for _, case, _ in cases
    ]
    said = refusals(tool, python_of(tool), files, together=True)
    wrong = [
        f"{name}, {'wrong' if is_wrong else 'right'} {case}: {refusal!r}"
        for (name, case, is_wrong), refusal in zip(cases, said, strict=True)
        if bool(refusal) != is_wrong and not refusal.startswith(NOT_HERE)
    ]
    assert not wrong, "\n".join(wrong)


TRAINED = {  # command -> (module, settings, trainer, rows of one kind)
    "sft": ("trl", "SFTConfig", "SFTTrainer", {"prompt": "w1 w2", "completion": "w3"}),
    "dpo": ("trl", "DPOConfig", "DPOTrainer", {"prompt": "w1", "chosen": "w2", "rejected": "w3"}),
    "kto": ("trl", "KTOConfig", "KTOTrainer", {"prompt": "w1", "completion": "w2", "label": True}),
}
# The rows of a test are prompts and answers, its model is no mixture, its data no stream.
ONLY_WRONG = {"answers-of-no-conversation", "router-of-no-mixture"}
NO_TRAINER = {"no-data", "quantised-without-lora", "precomputed-of-a-stream"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a model of one layer and a tokenizer of sixty words."""
    pytest.importorskip("trl")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    LlamaForCausalLM(
        LlamaConfig(
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            vocab_size=64,
        )
    ).save_pretrained(folder)
    words = {f"w{number}": number for number in range(60)} | {"<unk>": 60, "<eos>": 61, "<pad>": 62}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<eos>", pad_token="<pad>"
    ).save_pretrained(folder)
    return folder


def trainer_says(folder, case):
    """Why a trainer of TRL is not built with these keys; empty if it is."""
    from datasets import Dataset
    from peft import LoraConfig

    module, settings, trainer, row = TRAINED[case.get(COMMAND, "sft")]
    keys = {key: value for key, value in case.items() if "." not in key and key != COMMAND}
    keys = {key: None if value == "null" else value for key, value in keys.items()}
    lora, targets = keys.pop("use_peft", False), keys.pop("lora_target_modules", None)
    names = targets[0] if targets and len(targets) == 1 else targets
    peft = LoraConfig(target_modules=names, task_type="CAUSAL_LM") if lora else None
    found = import_module(module)
    try:
        args = getattr(found, settings)(
            output_dir=str(folder / "out"), use_cpu=True, report_to="none", bf16=False, **keys
        )
        getattr(found, trainer)(
            model=str(folder), args=args, train_dataset=Dataset.from_list([row] * 4),
            peft_config=peft,
        )  # fmt: skip
    except (ValueError, NotImplementedError) as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "name",
    [
        one
        for one in sorted(LATER)
        if one.startswith("trl/") and one.split("/")[1] not in NO_TRAINER
    ],
)
def test_a_trainer_of_trl_refuses_what_needs_a_model(name, tiny):
    """What no parser sees is refused when the trainer is built."""
    wrong, right = CASES[name]
    assert trainer_says(tiny, wrong)
    if name.split("/")[1] not in ONLY_WRONG:
        assert trainer_says(tiny, right) == ""
