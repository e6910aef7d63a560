"""Four roles on one base: each says exactly what its own model says when it is loaded alone."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification
from transformers import AutoModelForCausalLM, AutoTokenizer

from advisor.ground.errors import InputError
from tests.trainers.ppo.modules import UPDATES, save_module
from trainers.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, build_roles, last_tokens
from trainers.ppo.rollout import batches_of
from trainers.rollouts import Answers
from trainers.rows import Prepared
from trainers.stage.objective import Opened
from trainers.updates import load_update

TEXTS = Answers(
    [[1, 5, 6], [1, 7, 8, 9, 10], [1, 4]],
    [[9, 8, 7, 2], [20, 2], [5, 5, 5, 5, 5, 5, 5, 5]],
    [True, True, False],
)
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def batch():
    (found,) = batches_of(TEXTS, 3, pad_id=0, device="cpu")
    return found


def alone_log_probs(model):
    """What a plain model finds for each answer token, text by text without padding."""
    found = []
    with torch.no_grad():
        for row in batch().rows:
            prompt, answer = TEXTS.prompts[row], TEXTS.ids[row]
            table = (
                model(input_ids=torch.tensor([[*prompt, *answer]]))
                .logits[0]
                .float()
                .log_softmax(-1)
            )
            found += [table[len(prompt) - 1 + place, token] for place, token in enumerate(answer)]
    return torch.stack(found)


def alone_scores(model):
    with torch.no_grad():
        return torch.stack(
            [
                model(input_ids=torch.tensor([[*TEXTS.prompts[row], *TEXTS.ids[row]]])).logits[0, 0]
                for row in batch().rows
            ]
        )


def built(make, update, start, reward, tokenizer, **keys):
    job = make(
        update=update,
        start_from=str(start) if start else None,
        reward=None,
        reward_model=str(reward) if reward else None,
        **{**UPDATES[update], **keys},
    )
    rows = [SimpleNamespace(prompt_ids=prompt) for prompt in TEXTS.prompts]
    opened = Opened(
        job=job,
        device=torch.device("cpu"),
        update=load_update(update),
        versions={},
        threads=1,
        tokenizer=tokenizer,
        data=Prepared(train=rows, holdout=(), rows=len(rows)),
    )
    roles, notes = build_roles(opened, reward)
    for model in roles.models():
        model.eval()
    return roles, notes


@pytest.fixture
def tokenizer(toy_model):
    return AutoTokenizer.from_pretrained(toy_model)


@pytest.mark.parametrize("update", ["lora", "adapter", "prefix"])
def test_roles_on_one_base_are_the_models_they_stand_for(
    make, toy_model, tmp_path, tokenizer, update
):
    """Reference and policy say what the SFT module loaded alone says, the reward what the reward
    module loaded alone says; also after switching to and fro.
    """
    sft = save_module(toy_model, tmp_path / "sft", update, seed=1, scores=False)
    rm = save_module(toy_model, tmp_path / "rm", update, seed=2, scores=True)
    roles, notes = built(make, update, sft, rm, tokenizer)
    assert notes == ["policy, reference, reward and value share one base"]
    assert len(roles.models()) == 1
    said = alone_log_probs(
        AutoPeftModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval()
    )
    scored = alone_scores(
        AutoPeftModelForSequenceClassification.from_pretrained(
            rm, num_labels=1, dtype=torch.float32
        ).eval()
    )
    base = alone_log_probs(
        AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    )
    assert (said - base).abs().max() > 0.01
    with torch.no_grad():
        for _ in range(2):
            torch.testing.assert_close(roles.log_probs(REFERENCE, batch(), 1.0)[0], said, **EXACT)
            torch.testing.assert_close(roles.scores(batch()), scored, **EXACT)
            torch.testing.assert_close(roles.log_probs(POLICY, batch(), 1.0)[0], said, **EXACT)
            roles.values(batch())


@pytest.mark.parametrize("update", ["lora", "adapter", "prefix"])
def test_training_one_role_leaves_the_others_as_they_were(
    make, toy_model, tmp_path, tokenizer, update
):
    """A step of policy and value changes both; reference and reward stay to the bit, and so does
    the base.
    """
    sft = save_module(toy_model, tmp_path / "sft", update, seed=1, scores=False)
    rm = save_module(toy_model, tmp_path / "rm", update, seed=2, scores=True)
    roles, _ = built(make, update, sft, rm, tokenizer)

    def all_said():
        with torch.no_grad():
            says = {role: roles.log_probs(role, batch(), 1.0)[0] for role in (POLICY, REFERENCE)}
            return says | {VALUE: roles.values(batch()), REWARD: roles.scores(batch())}

    before = all_said()
    for role in (POLICY, VALUE):
        for parameter in roles.trained(role).values():
            parameter.requires_grad_(True)
    loss = roles.log_probs(POLICY, batch(), 1.0)[0].sum()
    loss.backward()
    roles.values(batch()).sum().backward()
    trained = [parameter for role in (POLICY, VALUE) for parameter in roles.trained(role).values()]
    assert all(parameter.grad is not None for parameter in trained)
    torch.optim.SGD(trained, lr=0.01).step()
    after = all_said()
    for role in (REFERENCE, REWARD):
        assert torch.equal(before[role], after[role])
    for role in (POLICY, VALUE):
        assert not torch.equal(before[role], after[role])


def test_roles_on_a_4_bit_base_are_the_models_they_stand_for(make, toy_model, tmp_path, tokenizer):
    """On one nf4 base as on one of 16 or 32 bits: the reference is the SFT module on such a base,
    the reward is the reward module on one.
    """
    pytest.importorskip("bitsandbytes")
    from peft import PeftModel

    from trainers.start.loading import load_base

    sft = save_module(toy_model, tmp_path / "sft", "lora", seed=1, scores=False)
    rm = save_module(toy_model, tmp_path / "rm", "lora", seed=2, scores=True)
    roles, notes = built(make, "lora", sft, rm, tokenizer, quantization="nf4")
    assert notes == ["policy, reference, reward and value share one base"]
    job = make(quantization="nf4")
    said = alone_log_probs(
        PeftModel.from_pretrained(load_base(job, torch.device("cpu")), sft).eval()
    )
    scored = alone_scores(
        PeftModel.from_pretrained(
            load_base(job, torch.device("cpu"), head="SequenceClassification", num_labels=1), rm
        ).eval()
    )
    with torch.no_grad():
        torch.testing.assert_close(roles.log_probs(REFERENCE, batch(), 1.0)[0], said, **EXACT)
        torch.testing.assert_close(roles.scores(batch()), scored, **EXACT)
        torch.testing.assert_close(roles.log_probs(POLICY, batch(), 1.0)[0], said, **EXACT)


def test_the_value_starts_as_the_reward_model(make, toy_model, tmp_path, tokenizer):
    """The value at the place where the reward model reads its score is that score."""
    sft = save_module(toy_model, tmp_path / "sft", "lora", seed=1, scores=False)
    rm = save_module(toy_model, tmp_path / "rm", "lora", seed=2, scores=True)
    roles, _ = built(make, "lora", sft, rm, tokenizer)
    # Of an answer the last value stands before its last token: cut there, a text is scored where
    # its last value was.
    shorter = Answers(
        [[*prompt, *answer[:-1]] for prompt, answer in zip(TEXTS.prompts, TEXTS.ids, strict=True)],
        [[3]] * 3,
        [False] * 3,
    )
    (one,) = batches_of(shorter, 3, pad_id=0, device="cpu")
    cut = Answers(
        [prompt[:-1] for prompt in shorter.prompts],
        [[prompt[-1]] for prompt in shorter.prompts],
        [False] * 3,
    )
    (other,) = batches_of(cut, 3, pad_id=0, device="cpu")
    with torch.no_grad():
        torch.testing.assert_close(roles.values(one), roles.scores(other), **EXACT)


def test_without_a_module_to_start_from_the_base_is_the_reference(
    make, toy_model, tmp_path, tokenizer
):
    """A new module on the base: the reference is the base alone, and the policy begins there."""
    rm = save_module(toy_model, tmp_path / "rm", "lora", seed=2, scores=True)
    roles, _ = built(make, "lora", None, rm, tokenizer)
    base = alone_log_probs(
        AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    )
    with torch.no_grad():
        torch.testing.assert_close(roles.log_probs(REFERENCE, batch(), 1.0)[0], base, **EXACT)
        torch.testing.assert_close(roles.log_probs(POLICY, batch(), 1.0)[0], base, **EXACT)
        torch.testing.assert_close(roles.log_probs(REFERENCE, batch(), 1.0)[0], base, **EXACT)


def test_update_full_takes_four_models(make, toy_model, tmp_path, tokenizer):
    """Policy and reference are the SFT model, reward and value the reward model, four in memory;
    and that is said.
    """
    sft = save_module(toy_model, tmp_path / "sft", "full", seed=1, scores=False)
    rm = save_module(toy_model, tmp_path / "rm", "full", seed=2, scores=True)
    roles, notes = built(make, "full", sft, rm, tokenizer)
    assert notes == ["4 models in memory: policy, reference, reward, value"]
    said = alone_log_probs(AutoModelForCausalLM.from_pretrained(sft, dtype=torch.float32).eval())
    with torch.no_grad():
        torch.testing.assert_close(roles.log_probs(REFERENCE, batch(), 1.0)[0], said, **EXACT)
        torch.testing.assert_close(roles.log_probs(POLICY, batch(), 1.0)[0], said, **EXACT)
        assert roles.values(batch()).shape == (14,)


def test_a_reward_model_of_another_kind_is_loaded_beside(make, toy_model, tmp_path, tokenizer):
    """A reward model that was trained whole keeps its own base, while the others share theirs; that
    is said.
    """
    sft = save_module(toy_model, tmp_path / "sft", "lora", seed=1, scores=False)
    rm = save_module(toy_model, tmp_path / "rm", "full", seed=2, scores=True)
    roles, notes = built(make, "lora", sft, rm, tokenizer)
    assert "loaded beside" in notes[0]
    assert len(roles.models()) == 2
    assert roles.parts[REWARD].head is None
    with torch.no_grad():
        assert (roles.values(batch()) == 0).all()


def test_a_reward_model_of_another_tokenizer_is_refused(
    make, toy_model, tiny_model, tmp_path, tokenizer
):
    """Its scores would be of other words than the policy wrote."""
    rm = save_module(tiny_model, tmp_path / "rm", "lora", seed=2, scores=True)
    with pytest.raises(InputError, match="tokenizer"):
        built(make, "lora", None, rm, tokenizer)


def test_the_score_is_read_at_the_last_token_that_is_no_padding():
    """Padding and end token the same: the one before the end; no padding token: the last of the
    text.
    """
    ids = torch.tensor([[5, 6, 2, 2], [7, 2, 8, 9]])
    attention = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    assert last_tokens(ids, attention, 2).tolist() == [1, 3]
    assert last_tokens(ids, attention, None).tolist() == [2, 3]
    assert last_tokens(ids, attention, 0).tolist() == [2, 3]
