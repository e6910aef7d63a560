"""What rules say that TRL's trainers refuse, against the trainers: they refuse those settings, and
take the ones that are right beside them.
"""

from importlib import import_module

import pytest

from advisor.extras.other_tools.mapping import COMMAND
from tests.extras.other_tools.finding_cases import CASES

pytestmark = pytest.mark.long

# Refused when the model, the tokenizer or the data are there.
LATER = (
    "answers-of-no-conversation", "adapter-on-the-head", "padding-free-cuts-nothing",
    "packing-without-length", "selective-of-nothing", "router-of-no-mixture",
    "exo-without-smoothing", "weighting-of-aot", "divergence-of-loss", "reference-of-lora",
    "reference-kept-and-moved", "kto-one-row", "kto-order",
)  # fmt: skip
TRAINED = {  # command -> (module, settings, trainer, rows of one kind)
    "sft": ("trl", "SFTConfig", "SFTTrainer", {"prompt": "w1 w2", "completion": "w3"}),
    "dpo": ("trl", "DPOConfig", "DPOTrainer", {"prompt": "w1", "chosen": "w2", "rejected": "w3"}),
    "kto": ("trl", "KTOConfig", "KTOTrainer", {"prompt": "w1", "completion": "w2", "label": True}),
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
@pytest.mark.parametrize("name", LATER)
def test_a_trainer_of_trl_refuses_what_needs_a_model(name, tiny):
    """What no parser sees is refused when the trainer is built."""
    wrong, right = CASES[f"trl/{name}"]
    assert trainer_says(tiny, wrong)
    if name not in ONLY_WRONG:
        assert trainer_says(tiny, right) == ""
