"""Bottleneck adapters through the trainer, and what they share with prefixes."""

import pytest

torch = pytest.importorskip("torch")
from msgspec.structs import replace
from peft import AutoPeftModelForCausalLM, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

from advisor.ground.errors import InputError
from tests.trainers.runs import losses, trained, whole_and_broken
from trainers.job.job import make_job
from trainers.updates import load_update

OF_A_PLACE = 2 * 64 * 16 + 16 + 64  # parameters of a bottleneck of 16 beside a layer 64 wide


@pytest.mark.parametrize(
    ("keys", "parameters", "falls_by"),
    [
        ({"placement": "houlsby"}, 4 * OF_A_PLACE, 0.2),
        ({"placement": "pfeiffer"}, 2 * OF_A_PLACE, 0.2),
        # Of one layer, on a 4-bit base, with keys of the config itself.
        (
            {
                "placement": "parallel", "quantization": "nf4",
                "peft": {"activation": "gelu", "layers": [1], "scale": 2.0},
            },
            OF_A_PLACE,
            0.1,
        ),
        # Tokens, keys and values, layers, two heads of 16.
        (
            {"update": "prefix", "prefix_tokens": 10, "learning_rate": 5e-2, "bottleneck": None},
            10 * 2 * 2 * 32,
            0.0,
        ),
    ],
    ids=["houlsby", "pfeiffer", "parallel", "prefix"],
)  # fmt: skip
def test_it_learns_and_loads_in_plain_peft(keys, parameters, falls_by, make):
    """Each placement, and a prefix, lowers the loss, passes its checks, and loads after `import
    advisor.peft_adapter`.
    """
    job = make(**{"update": "adapter", "bottleneck": 16, "max_steps": 15, **keys})
    result = trained(job)
    assert result["loss_last"] < result["loss_first"] - falls_by
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    found = result["resolved"]
    kind = "PREFIX_TUNING" if job.stage.update == "prefix" else "BOTTLENECK"
    assert {"peft_type": kind, **keys.get("peft", {})}.items() <= found["peft"].items()
    assert found["trainable_dtype"] == "float32"
    assert found["trainable_parameters"] == parameters
    names = {path.name for path in job.output.glob("adapter*")}
    assert names == {"adapter_config.json", "adapter_model.safetensors"}
    ids = AutoTokenizer.from_pretrained(job.output)("hello", return_tensors="pt")["input_ids"]
    model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(job.plan.model, dtype=torch.float32)
    assert not torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits)


@pytest.mark.parametrize("own", [{"update": "adapter", "dropout": 0.1}, {"update": "prefix"}])
def test_a_broken_run_resumes_with_the_same_losses(own, make, monkeypatch):
    """Checkpoints of a module hold all that is needed to go on."""
    whole, broken = whole_and_broken(make, 3, monkeypatch, **own, max_steps=5, save_steps=2)
    assert losses(broken) == losses(whole)


def test_a_stage_goes_on_from_the_adapter_before_and_full_cannot(make, tmp_path):
    """A second adapter stage continues the first; another bottleneck is refused; so is `full`,
    since nothing can be merged.
    """
    first = make(update="adapter", bottleneck=8, max_steps=6, job_judge=False)
    trained(first)

    def train_more(**keys):
        more = replace(first.stage, name="more", start_from="sft", **keys)
        plan = replace(first.plan, stages=(first.stage, more))
        return trained(make_job(plan, stage="more", run=first.run, folder=tmp_path, judge=False))

    assert train_more()["loss_first"] < losses(first)[0]
    for update, options, said in (
        ("adapter", {"bottleneck": 9}, "bottleneck is 9, the adapter it continues from has 8"),
        ("lora", {}, "continues from a BOTTLENECK adapter"),
        ("full", {}, "continues from a bottleneck adapter, which cannot be merged"),
    ):
        with pytest.raises(InputError, match=said):
            train_more(update=update, options=options)


def test_a_layer_the_model_lacks_is_bad_input(make):
    """Layer 7 of a model with two layers is exit 2 with the range."""
    with pytest.raises(InputError, match="layers names 7, but LlamaForCausalLM has layers 0 to 1"):
        trained(make(update="adapter", peft={"layers": [7]}))


@pytest.mark.parametrize("update", ["adapter", "lora", "prefix"])
def test_the_module_of_another_base_is_bad_input(update, make, tmp_path):
    """Going on from a module of a base with other sizes is exit 2 with what does not fit, whatever
    the update.
    """
    elsewhere = tmp_path / "elsewhere"
    job = make(update=update, start_from=str(elsewhere))
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2}
    other = AutoModelForCausalLM.from_config(
        LlamaConfig(vocab_size=300, num_attention_heads=4, max_position_embeddings=512, **sizes)
    )
    module = load_update(update).peft_config(job.stage, job.options, other)
    get_peft_model(other, module).save_pretrained(elsewhere)
    with pytest.raises(InputError, match=r"elsewhere,? .*does not fit .*tiny-model"):
        trained(job)
