"""What rules say that TRL's trainers refuse, against the trainers: they refuse those settings, and take the
ones that are right beside them. And every file inside the tools' own source packages is read: none ends in
a bug, and what they ship as an example of a training is taken as one.

    ADVISE_TOOL_EXAMPLES=FOLDER pytest -m long tests/extras/other_tools/test_tools_long.py

FOLDER holds one folder a tool (llamafactory, axolotl) with its unpacked source package.
"""

import os
from collections import Counter
from pathlib import Path

import pytest

from advisor.extras.other_tools.data_sets import data_of, recognise_set
from advisor.extras.other_tools.file import looks_like_configuration, read_file
from advisor.extras.other_tools.mapping import COMMAND
from advisor.extras.other_tools.yaml_text import edited
from advisor.ground.errors import AdviseError
from tests.extras.other_tools.finding_cases import CASES

pytestmark = pytest.mark.long

# Refused when the model, the tokenizer or the data are there.
TRAINED = {  # command -> settings, trainer, rows of one kind
    "sft": ("SFTConfig", "SFTTrainer", {"prompt": "w1 w2", "completion": "w3"}),
    "dpo": ("DPOConfig", "DPOTrainer", {"prompt": "w1", "chosen": "w2", "rejected": "w3"}),
    "kto": ("KTOConfig", "KTOTrainer", {"prompt": "w1", "completion": "w2", "label": True}),
}
# The rows of a test are prompts and answers, its model is no mixture, its data no stream.
ONLY_WRONG = {"answers-of-no-conversation", "router-of-no-mixture"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A folder with a model of one layer and a tokenizer of sixty words."""
    pytest.importorskip("trl")
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("tiny")
    config = LlamaConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        vocab_size=64,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    words = {f"w{number}": number for number in range(60)} | {"<unk>": 60, "<eos>": 61, "<pad>": 62}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    marks = {f"{name}_token": f"<{name}>" for name in ("unk", "eos", "pad")}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(folder)
    return folder


def trainer_says(folder, case):
    """Why a trainer of TRL is not built with these keys; empty if it is."""
    import trl
    from datasets import Dataset
    from peft import LoraConfig

    settings, trainer, row = TRAINED[case.get(COMMAND, "sft")]
    keys = {key: value for key, value in case.items() if "." not in key and key != COMMAND}
    keys = {key: None if value == "null" else value for key, value in keys.items()}
    lora, targets = keys.pop("use_peft", False), keys.pop("lora_target_modules", None)
    names = targets[0] if targets and len(targets) == 1 else targets
    peft = LoraConfig(target_modules=names, task_type="CAUSAL_LM") if lora else None
    try:
        args = getattr(trl, settings)(
            output_dir=str(folder / "out"), use_cpu=True, report_to="none", bf16=False, **keys
        )
        getattr(trl, trainer)(
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
        "answers-of-no-conversation", "adapter-on-the-head", "padding-free-cuts-nothing",
        "packing-without-length", "selective-of-nothing", "router-of-no-mixture",
        "exo-without-smoothing", "weighting-of-aot", "divergence-of-loss", "reference-of-lora",
        "reference-kept-and-moved", "kto-one-row", "kto-order",
    ],
)  # fmt: skip
def test_a_trainer_of_trl_refuses_what_needs_a_model(name, tiny):
    """What no parser sees is refused when the trainer is built."""
    wrong, right = CASES[f"trl/{name}"]
    assert trainer_says(tiny, wrong)
    if name not in ONLY_WRONG:
        assert trainer_says(tiny, right) == ""


VARIABLE = "ADVISE_TOOL_EXAMPLES"
LEAST = {"llamafactory": 50, "axolotl": 250}  # files of a training


@pytest.mark.skipif(not os.environ.get(VARIABLE), reason=f"{VARIABLE} names no folder")
@pytest.mark.parametrize("tool", LEAST)
def test_no_file_of_a_tool_ends_in_a_bug(tool):
    """Each is read with its data, changed as its faults say, and read again; or refused in words."""
    counts = Counter()
    for path in sorted(Path(os.environ[VARIABLE], tool).rglob("*")):
        is_likely = path.suffix in (".yaml", ".yml", ".json", ".sh") and path.is_file()
        if not (is_likely and looks_like_configuration(path)):
            continue
        try:
            file = read_file(path)
        except AdviseError as refused:
            counts["refused" if refused.faults[0].hint else "refused without a hint"] += 1
            continue
        counts[file.tool] += 1
        for ref in data_of(file):
            recognise_set(ref)
        if file.is_script:
            continue
        changes = {key: new for one in file.faults for key, new in (one.instead or {}).items()}
        new = edited(file.text, changes)
        comments = [line for line in file.text.splitlines() if line.startswith("#")]
        assert [line for line in comments if line not in new] == [], path
    assert sum(counts.values()) > 5
    assert counts["refused without a hint"] == 0
    assert counts[tool] >= LEAST[tool], counts
