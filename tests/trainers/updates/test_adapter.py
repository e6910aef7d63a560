"""Bottleneck adapters through the trainer."""

import pytest

from advisor.ground.errors import InputError
from tests.trainers.runs import break_at, losses, trained
from trainers import sft


@pytest.mark.parametrize("placement", ["houlsby", "pfeiffer", "parallel"])
def test_it_learns_and_loads_in_plain_peft(placement, make):
    """Each placement lowers the loss, passes its checks, and loads after `import
    advisor.peft_adapter`.
    """
    import torch
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    job = make(update="adapter", placement=placement, bottleneck=16, max_steps=15)
    result = trained(job)
    assert result["loss_last"] < result["loss_first"] - 0.2
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]
    assert result["resolved"]["peft"]["peft_type"] == "BOTTLENECK"
    places = 2 * (2 if placement == "houlsby" else 1)  # two layers
    assert result["resolved"]["trainable_parameters"] == places * (2 * 64 * 16 + 16 + 64)
    assert {path.name for path in job.output.glob("adapter*")} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }
    ids = AutoTokenizer.from_pretrained(job.output)("hello", return_tensors="pt")["input_ids"]
    model = AutoPeftModelForCausalLM.from_pretrained(job.output, dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(job.plan.model, dtype=torch.float32)
    assert not torch.allclose(model(input_ids=ids).logits, base(input_ids=ids).logits)


def test_checkpointing_gives_the_same_losses(make):
    """Recomputing activations changes no loss."""
    plain = make(update="adapter", job_judge=False)
    again = make(
        update="adapter",
        gradient_checkpointing=True,
        job_judge=False,
        job_run=plain.run.parent / "again",
    )
    trained(plain)
    trained(again)
    assert losses(again) == pytest.approx(losses(plain), rel=1e-6)


def test_on_a_4_bit_base_it_trains_in_float32(make):
    """A 4-bit base trains on the CPU through the same code, and what was saved is what was
    trained.
    """
    result = trained(make(update="adapter", quantization="nf4", max_steps=12))
    assert result["loss_last"] < result["loss_first"]
    assert result["resolved"]["trainable_dtype"] == "float32"


@pytest.mark.parametrize("own", [{"update": "adapter", "dropout": 0.1}, {"update": "prefix"}])
def test_a_broken_run_resumes_with_the_same_losses(own, make, monkeypatch):
    """Checkpoints of a module hold all that is needed to go on."""
    keys = {**own, "max_steps": 8, "save_steps": 2, "job_judge": False}
    whole = make(**keys)
    trained(whole)
    broken = make(**keys, job_run=whole.run.parent / "broken")
    break_at(5, broken, monkeypatch)
    trained(broken)
    assert losses(broken) == losses(whole)


def test_a_stage_goes_on_from_the_adapter_before_and_full_cannot(make, tmp_path):
    """A second adapter stage continues the first; another bottleneck is refused; so is `full`,
    since nothing can be merged.
    """
    from msgspec.structs import replace

    from trainers.job.job import make_job

    first = make(update="adapter", bottleneck=8, max_steps=6, job_judge=False)
    trained(first)
    stages = (
        first.stage,
        replace(first.stage, name="more"),
        replace(first.stage, name="wider", start_from="sft", options={"bottleneck": 9}),
        replace(first.stage, name="lora", start_from="sft", update="lora", options={}),
        replace(first.stage, name="whole", start_from="sft", update="full", options={}),
    )
    plan = replace(first.plan, stages=stages)

    def job(name):
        return make_job(plan, stage=name, run=first.run, folder=tmp_path, judge=False)

    result = trained(job("more"))
    assert result["loss_first"] < losses(first)[0]
    with pytest.raises(InputError, match="bottleneck is 9, the adapter it continues from has 8"):
        sft.train(job("wider"))
    with pytest.raises(InputError, match="continues from a BOTTLENECK adapter"):
        sft.train(job("lora"))
    with pytest.raises(
        InputError, match="continues from a bottleneck adapter, which cannot be merged"
    ):
        sft.train(job("whole"))


def test_what_peft_takes_reaches_the_adapter_and_what_the_plan_owns_is_refused(make, monkeypatch):
    """peft: {activation, layers, scale} are the config's own; typos, owned keys and wrong values
    are refused before the model loads.
    """
    import trainers.start.loading as loading

    result = trained(
        make(
            update="adapter",
            peft={"activation": "gelu", "layers": [1], "scale": 2.0},
            job_judge=False,
        )
    )
    assert (
        result["resolved"]["peft"]["activation"],
        result["resolved"]["peft"]["layers"],
        result["resolved"]["peft"]["scale"],
    ) == ("gelu", [1], 2.0)
    assert result["resolved"]["trainable_parameters"] == 2 * 64 * 64 + 64 + 64
    monkeypatch.setattr(
        loading, "load_base", lambda *args, **kwargs: pytest.fail("the model was loaded")
    )
    with pytest.raises(InputError) as caught:
        sft.train(make(update="adapter", peft={"activaton": "gelu", "bottleneck": 3, "scale": 0}))
    text = str(caught.value)
    assert "did you mean 'activation'?" in text
    assert "'bottleneck' is set by the plan's own key bottleneck" in text
    assert "scale is 0" in text


def test_a_layer_the_model_lacks_is_bad_input(make):
    """Layer 7 of a model with two layers is exit 2 with the range."""
    with pytest.raises(InputError, match="layers names 7, but LlamaForCausalLM has layers 0 to 1"):
        sft.train(make(update="adapter", peft={"layers": [7]}))


@pytest.mark.parametrize("update", ["adapter", "lora", "prefix"])
def test_the_module_of_another_base_is_bad_input(update, make, tmp_path, tiny_model):
    """Going on from a module of a base with other sizes is exit 2 with what does not fit, whatever
    the update.
    """
    from msgspec.structs import replace
    from peft import get_peft_model
    from transformers import AutoModelForCausalLM, LlamaConfig

    import trainers.updates

    job = make(update=update)
    sizes = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 512,
    }
    other = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=300, **sizes))
    config = trainers.updates.load_update(update).peft_config(job.stage, job.options, other)
    get_peft_model(other, config).save_pretrained(tmp_path / "elsewhere")
    stage = replace(job.stage, start_from=str(tmp_path / "elsewhere"))
    from trainers.job.job import make_job

    plan = replace(job.plan, stages=(stage,))
    with pytest.raises(InputError, match=r"elsewhere,? .*does not fit .*tiny-model"):
        sft.train(make_job(plan, stage="sft", run=tmp_path / "run", folder=tmp_path))
