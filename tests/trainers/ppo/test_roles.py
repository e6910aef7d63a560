"""Four roles on one base: each says exactly what its own model says when it is loaded alone."""

from types import SimpleNamespace

import pytest

torch = pytest.importorskip("torch")

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from advisor.ground.errors import InputError
from tests.trainers.ppo.conftest import UPDATES, save_module
from tests.trainers.rollouts.vllm_stand_in import scored
from trainers.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, build_roles, last_tokens
from trainers.ppo.rollout import batches_of
from trainers.rollouts import Answers
from trainers.rows import Prepared
from trainers.stage.objective import Opened
from trainers.start.loading import load_base
from trainers.updates import load_update

TEXTS = Answers(
    [[1, 5, 6], [1, 7, 8, 9, 10], [1, 4]],
    [[9, 8, 7, 2], [20, 2], [5, 5, 5, 5, 5, 5, 5, 5]],
    [True, True, False],
)
CPU = torch.device("cpu")
EXACT = {"atol": 1e-5, "rtol": 1e-5}


def batch(texts=TEXTS):
    (found,) = batches_of(texts, 3, pad_id=0, device="cpu")
    return found


def alone_log_probs(model):
    """What a plain model finds for each answer token, text by text without padding."""
    found = scored(model.eval(), TEXTS, 1.0)
    return torch.tensor([one for row in batch().rows for one in found[row]])


def alone_scores(model):
    texts = [torch.tensor([[*TEXTS.prompts[row], *TEXTS.ids[row]]]) for row in batch().rows]
    with torch.no_grad():
        return torch.stack([model.eval()(input_ids=text).logits[0, 0] for text in texts])


@pytest.fixture
def built(make, toy_model, tmp_path):
    """`built(update, sft, rm)`: a stage's roles on modules of these updates, and what was said."""

    def build(update, sft, rm, **keys):
        start = sft and save_module(toy_model, tmp_path / "sft", sft, seed=1, scores=False)
        reward = save_module(toy_model, tmp_path / "rm", rm, seed=2, scores=True)
        return built_on(make, update, start, reward, **keys)

    return build


def built_on(make, update, start, reward, **keys):
    job = make(
        update=update, start_from=start and str(start), reward=None, reward_model=str(reward),
        **{**UPDATES[update], **keys},
    )  # fmt: skip
    rows = [SimpleNamespace(prompt_ids=prompt) for prompt in TEXTS.prompts]
    opened = Opened(
        job=job, device=CPU, update=load_update(update), versions={}, threads=1,
        tokenizer=AutoTokenizer.from_pretrained(job.base_model),
        data=Prepared(train=rows, holdout=(), rows=len(rows)),
    )  # fmt: skip
    roles, notes = build_roles(opened, reward)
    for model in roles.models():
        model.eval()
    return roles, notes


def check_said(roles, said, scored=None):
    """Reference and policy say this, and the reward that, also after switching to and fro."""
    for _ in range(2):
        with torch.no_grad():
            torch.testing.assert_close(roles.log_probs(REFERENCE, batch(), 1.0)[0], said, **EXACT)
            if scored is not None:
                torch.testing.assert_close(roles.scores(batch()), scored, **EXACT)
            torch.testing.assert_close(roles.log_probs(POLICY, batch(), 1.0)[0], said, **EXACT)
            roles.values(batch())


@pytest.mark.parametrize(
    ("update", "keys"),
    [("lora", {}), ("adapter", {}), ("prefix", {}), ("lora", {"quantization": "nf4"})],
    ids=["lora", "adapter", "prefix", "4-bit"],
)
def test_roles_on_one_base_are_the_models_they_stand_for(built, make, tmp_path, update, keys):
    """Each role says what its module says alone; a step changes policy and value, nothing else."""
    roles, notes = built(update, update, update, **keys)
    assert notes == ["policy, reference, reward and value share one base"]
    assert len(roles.models()) == 1
    job = make(**keys)
    base = alone_log_probs(load_base(job, CPU))
    said = alone_log_probs(PeftModel.from_pretrained(load_base(job, CPU), tmp_path / "sft"))
    scoring = load_base(job, CPU, head="SequenceClassification", num_labels=1)
    check_said(roles, said, alone_scores(PeftModel.from_pretrained(scoring, tmp_path / "rm")))
    assert (said - base).abs().max() > 0.01

    def all_said():
        with torch.no_grad():
            says = {role: roles.log_probs(role, batch(), 1.0)[0] for role in (POLICY, REFERENCE)}
            return says | {VALUE: roles.values(batch()), REWARD: roles.scores(batch())}

    before = all_said()
    trained = [
        one.requires_grad_() for role in (POLICY, VALUE) for one in roles.trained(role).values()
    ]
    roles.log_probs(POLICY, batch(), 1.0)[0].sum().backward()
    roles.values(batch()).sum().backward()
    assert all(parameter.grad is not None for parameter in trained)
    torch.optim.SGD(trained, lr=0.01).step()
    stayed = [role for role, said in all_said().items() if torch.equal(before[role], said)]
    assert stayed == [REFERENCE, REWARD]


def test_the_value_starts_as_the_reward_model(built):
    """The value at the place where the reward model reads its score is that score."""
    roles, _ = built("lora", "lora", "lora")
    texts = [[*prompt, *ids] for prompt, ids in zip(TEXTS.prompts, TEXTS.ids, strict=True)]
    # Of an answer the last value stands before its last token: cut there, a text is scored where
    # its last value was.
    values = Answers([text[:-1] for text in texts], [[3]] * 3, [False] * 3)
    scores = Answers([text[:-2] for text in texts], [text[-2:-1] for text in texts], [False] * 3)
    with torch.no_grad():
        found, wanted = roles.values(batch(values)), roles.scores(batch(scores))
    torch.testing.assert_close(found, wanted, **EXACT)


def test_without_a_module_to_start_from_the_base_is_the_reference(built, toy_model):
    """A reward model that was trained whole keeps its own base, and the log says so."""
    roles, notes = built("lora", None, "full")
    base = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32)
    check_said(roles, alone_log_probs(base))
    assert "loaded beside" in notes[0]
    assert len(roles.models()) == 2
    assert roles.parts[REWARD].head is None
    with torch.no_grad():
        assert (roles.values(batch()) == 0).all()


def test_update_full_takes_four_models(built, tmp_path):
    """Policy and reference are the SFT model, reward and value the reward model; that is said."""
    roles, notes = built("full", "full", "full")
    assert notes == ["4 models in memory: policy, reference, reward, value"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "sft", dtype=torch.float32)
    check_said(roles, alone_log_probs(loaded))
    with torch.no_grad():
        assert roles.values(batch()).shape == (14,)


def test_a_reward_model_of_another_tokenizer_is_refused(make, tiny_model, tmp_path):
    """Its scores would be of other words than the policy wrote."""
    rm = save_module(tiny_model, tmp_path / "rm", "lora", seed=2, scores=True)
    with pytest.raises(InputError, match="tokenizer"):
        built_on(make, "lora", None, rm)


def test_the_score_is_read_at_the_last_token_that_is_no_padding():
    """Padding and end token the same: the one before the end; no padding token: the last one."""
    ids = torch.tensor([[5, 6, 2, 2], [7, 2, 8, 9]])
    attention = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])
    found = {pad: last_tokens(ids, attention, pad).tolist() for pad in (2, None, 0)}
    assert found == {2: [1, 3], None: [2, 3], 0: [2, 3]}
