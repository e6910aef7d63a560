"""An update of PPO: answers, formulas by hand, optimizer, agreeing processes, and four roles on one base."""

import math
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec.structs import replace

torch = pytest.importorskip("torch")

from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from advisor.ground.errors import InputError
from advisor.methods.optimizers import OPTIMIZERS
from tests.trainers.ppo.conftest import UPDATES, save_module
from tests.trainers.rollouts.vllm_stand_in import scored
from tests.trainers.runs import trained, weights
from trainers.ppo import train
from trainers.ppo.learning import Learner, PPOArguments, make_optimizer, rate_share, set_rates
from trainers.ppo.loop import shuffled
from trainers.ppo.math import (
    KLCoefficient,
    approximate_kl,
    explained_variance,
    generalized_advantages,
    importance_weights,
    kl_penalty,
    masked_mean,
    masked_variance,
    policy_losses,
    token_rewards,
    value_losses,
    whiten,
)
from trainers.ppo.roles import POLICY, REFERENCE, REWARD, VALUE, build_roles, last_tokens
from trainers.ppo.rollout import batches_of, gather_answers, scatter_answers, tokens_at_once
from trainers.rollouts import Answers, Sampling
from trainers.rollouts import transformers_engine as module
from trainers.rollouts.transformers_engine import TransformersEngine
from trainers.rows import Prepared
from trainers.stage.objective import Opened
from trainers.start.loading import load_base
from trainers.step.answer_loss import add_hidden_call
from trainers.updates import load_update


def tensor(*rows):
    return torch.tensor(rows, dtype=torch.float64)


def number(value):
    return torch.tensor(value, dtype=torch.float64)


VALUES, MASK = tensor([1, 3], [5, 100]), tensor([1, 1], [1, 0])
ANSWERS = tensor([1, 1, 0], [1, 1, 1])  # which tokens of two answers count
PENALTY = tensor([0.2, -0.4, 0], [0, 0, 0.5])
RATIOS, SIGNS = tensor([1.5, 0.5, 1.5, 0.5, 1.1]), tensor([1, 1, -1, -1, 1])
RETURNS, FIRST_THREE = tensor([1, 2, 3, 50]), tensor([1, 1, 1, 0])


FORMULAS = {
    # Of 1, 3, 5 and 100 the mask takes three: mean 3, variance (4 + 0 + 4) / 3.
    "mean": (lambda: masked_mean(VALUES, MASK), number(3.0)),
    "variance": (lambda: masked_variance(VALUES, MASK), number(8 / 3)),
    "mean of nothing": (lambda: masked_mean(VALUES, torch.zeros_like(VALUES)), number(0.0)),
    "the KL penalty is on every token that counts": (
        lambda: kl_penalty(
            tensor([-1.0, -1.0, 9], [-2, -2, -2]), tensor([-1.2, -0.6, 0], [-2, -2, -2.5]), ANSWERS
        ),
        PENALTY,
    ),
    # Penalty 0.5 x (0.2, -0.4), and a score of 2 on the second and last token of the first answer.
    "the score is on the last token": (
        lambda: token_rewards(number([2.0, -1.0]), PENALTY, ANSWERS, 0.5),
        tensor([-0.1, 2.2, 0], [0, 0, -1.25]),
    ),
    # gamma 0.9, lam 0.5: deltas 1 + 0.9*1 - 0.5 = 1.4, 0 + 0.9*2 - 1 = 0.8, 3 - 2 = 1; A = 1.4 +
    # 0.45*1.25 = 1.9625, 0.8 + 0.45 = 1.25, 1.
    "advantages and returns follow the recursion": (
        lambda: generalized_advantages(
            tensor([1, 0, 3, 7]), tensor([0.5, 1, 2, 9]), FIRST_THREE, gamma=0.9, lam=0.5
        ),
        (tensor([1.9625, 1.25, 1, 0]), tensor([2.4625, 2.25, 3, 0])),
    ),
    # gamma 1, lam 1: 1 + 2 + 3 - 4 = 2, 2 + 3 - 5 = 0, 3 - 6 = -3.
    "with lam 1 they are the rewards to come less the value": (
        lambda: generalized_advantages(
            tensor([1, 2, 3]), tensor([4, 5, 6]), tensor([1, 1, 1]), gamma=1.0, lam=1.0
        ),
        (tensor([2, 0, -3]), tensor([6, 5, 3])),
    ),
    # Ratios 1.5, 0.5, 1.5, 0.5, 1.1, advantages 1, 1, -1, -1, 1, clip 0.2; the ratios, and which of
    # them were clipped, come with the losses.
    "the policy loss is clipped only where that makes it worse": (
        lambda: policy_losses(RATIOS.log(), torch.zeros_like(RATIOS), SIGNS, 0.2),
        (tensor([-1.2, -0.5, 1.5, 0.8, -1.1]), RATIOS, tensor([1, 0, 0, 1, 0]).bool()),
    ),
    # Value 2 held at 1.2: return 3 gives 0.5 * 1.8^2, return 1 gives 0.5 * 1; value 1.1 is not
    # held: 0.5 * 0.9^2.
    "the value loss takes the larger error": (
        lambda: value_losses(tensor([2, 2, 1.1]), tensor([1, 1, 1]), tensor([3, 1, 2]), 0.2),
        tensor([1.62, 0.5, 0.405]),
    ),
    # A ratio of 2 counts 2 - 1 - ln 2; none counts nothing.
    "how far a policy has moved": (
        lambda: approximate_kl(tensor([math.log(2), 0]), tensor([0, 0])),
        tensor([1 - math.log(2), 0]),
    ),
    "perfect values explain everything": (
        lambda: explained_variance(RETURNS, RETURNS, FIRST_THREE),
        number(1.0),
    ),
    "constant values explain nothing": (
        lambda: explained_variance(torch.zeros_like(RETURNS), RETURNS, FIRST_THREE),
        number(0.0),
    ),
    # errors 0.5, 0, -0.5 have variance 1/6, the returns 2/3
    "some values explain a part": (
        lambda: explained_variance(tensor([0.5, 2, 3.5, 0]), RETURNS, FIRST_THREE),
        number(0.75),
    ),
    # exp(0.5), no knowledge, cut at 2, and nothing beyond the end of an answer.
    "importance weights are ratios up to two": (
        lambda: importance_weights(
            tensor([-1.0, -1, -1, 0]), tensor([-1.5, math.nan, -3, 9]), FIRST_THREE
        ),
        (tensor([math.exp(0.5), 1, 2, 0]), number((0.5 + 0 + 2) / 3), number(1 / 3)),
    ),
    "returns that do not vary count 0": (
        lambda: explained_variance(RETURNS, torch.ones_like(RETURNS), FIRST_THREE),
        number(0.0),
    ),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_the_formulas_by_hand(name):
    """Each on numbers small enough to work out."""
    found, wanted = FORMULAS[name]
    torch.testing.assert_close(found(), wanted)


@pytest.mark.parametrize(("keys", "mean"), [({}, 0), ({"keep_mean": True}, 3)])
def test_whitening_gives_mean_zero_and_variance_one(keys, mean):
    """1, 3, 5 become -sqrt(3/2), 0, sqrt(3/2), about their own mean if it is kept; the rest 0."""
    root = math.sqrt(1.5)
    wanted = tensor([mean - root, mean], [mean + root, 0])
    torch.testing.assert_close(whiten(VALUES, MASK, **keys), wanted, atol=1e-6, rtol=0)


def test_a_fixed_price_of_kl_stays_and_an_adaptive_one_follows_the_target():
    """KL 9 at target 6 is held at +20 %: 0.15 * (1 + 0.2 * 500 / 10000); KL 5.4 is 10 % below."""
    for price, target, kl, wanted in (
        (0.05, None, 100.0, 0.05),
        (0.15, 6.0, 9.0, 0.15 * 1.01),
        (0.15, 6.0, 5.4, 0.15 * (1 - 0.1 * 0.05)),
    ):
        coefficient = KLCoefficient(price, target=target)
        coefficient.adapt(kl, 500)
        assert coefficient.value == pytest.approx(wanted)


PROMPTS = [[1, 5, 6], [1, 7, 8, 9, 10, 11, 12], [1, 4]]


@pytest.fixture(scope="module")
def model(toy_model):
    loaded = AutoModelForCausalLM.from_pretrained(toy_model, dtype=torch.float32).eval()
    add_hidden_call(loaded)
    return loaded


def engine_of(model):
    return TransformersEngine(lambda: nullcontext(model), models=lambda: [model])


def write(model, **keys):
    torch.manual_seed(0)
    sampling = Sampling(**{"limit": 10, "temperature": 0.7, "stops": [2], **keys})
    return engine_of(model).generate(PROMPTS, sampling)


def test_answers_end_at_the_first_stop_token_and_keep_it(model):
    """A stop token is the last of its answer; an answer without one has the full length."""
    answers = write(model, stops=[2, 10, 11, 12, 13], limit=20)
    assert any(answers.ended)
    stops = {2, 10, 11, 12, 13}
    assert [ids[-1] in stops for ids in answers.ids] == answers.ended
    assert not any(stops & set(ids[:-1]) for ids in answers.ids)
    assert all(
        ended or len(ids) == 20 for ids, ended in zip(answers.ids, answers.ended, strict=True)
    )


def test_parts_hold_prompts_of_similar_length(model, monkeypatch):
    """The longest prompts come first, and each answer is back in its place, as if all at once."""
    engine, greedy = engine_of(model), Sampling(limit=6, stops=[2], temperature=0)
    together = engine.generate(PROMPTS, greedy)
    lengths, real = [], module.generate_batch

    def watched(model, prompts, *others, **keys):
        lengths.append([len(prompt) for prompt in prompts])
        return real(model, prompts, *others, **keys)

    monkeypatch.setattr(module, "generate_batch", watched)
    monkeypatch.setattr(engine, "rows_at_once", lambda rows, limit: 2)
    parts = engine.generate(PROMPTS, greedy)
    assert lengths == [[7, 3], [2]]
    assert (parts.ids, parts.ended, parts.prompts) == (together.ids, together.ended, PROMPTS)
    assert engine.generate(PROMPTS, greedy, n=2).prompts == [one for one in PROMPTS for _ in "ab"]


def test_a_gpu_gets_parts_of_so_many_tokens_that_it_is_busy():
    """Of a small vocabulary both take all that 64 MiB hold; of a large one a GPU takes more."""
    found = [tokens_at_once(words, on) for words in (152_064, 4096) for on in ("cpu", "cuda")]
    assert found == [110, 2048, 4096, 4096]


def test_a_model_s_own_generation_settings_take_no_part(model, monkeypatch):
    """top_k or a repetition penalty of the model would draw from another distribution."""
    before = write(model)
    monkeypatch.setattr(model.generation_config, "top_k", 1)
    monkeypatch.setattr(model.generation_config, "repetition_penalty", 1.5)
    assert (write(model).ids, model.generation_config.top_k) == (before.ids, 1)


def test_tables_and_batches_are_each_others_inverse():
    """What is laid out as a table and taken again is what it was."""
    answers = Answers([[1], [1, 3]], [[5, 6, 2], [7]], [True, False])
    (batch,) = batches_of(answers, 2, pad_id=0, device="cpu")
    assert (batch.rows, batch.targets_N.tolist()) == ([1, 0], [7, 5, 6, 2])
    table = scatter_answers([batch], [torch.arange(1.0, 5.0)])
    assert table.tolist() == [[2.0, 3.0, 4.0], [1.0, 0.0, 0.0]]
    assert gather_answers(table, batch).tolist() == [1.0, 2.0, 3.0, 4.0]


class Block(torch.nn.Module):
    """The kinds of parameters a model has, by their usual names."""

    def __init__(self) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(4, 4)
        self.input_layernorm = torch.nn.Linear(4, 1, bias=False)  # an RMSNorm goes by its name
        self.ln_1 = torch.nn.LayerNorm(4)


def roles() -> Any:
    parts = {
        role: SimpleNamespace(model=Block().bfloat16(), head=head)
        for role, head in ((POLICY, None), (VALUE, torch.nn.Linear(4, 1)))
    }
    names = {role: dict(part.model.named_parameters()) for role, part in parts.items()}
    names[VALUE] |= {f"head.{name}": one for name, one in parts[VALUE].head.named_parameters()}
    return SimpleNamespace(parts=parts, trained=lambda role: names[role])


@pytest.fixture
def stage(make):
    return make(update="full", weight_decay=0.1, learning_rate=1e-3).stage


def test_norms_and_biases_do_not_decay(stage):
    """Weight decay pulls matrices alone, as under transformers' Trainer, in groups by role."""
    found = roles()
    optimizer = make_optimizer(stage, {"value_learning_rate": 5e-4}, found, PPOArguments())
    for role, rate in ((POLICY, 1e-3), (VALUE, 5e-4)):
        of_role = [group for group in optimizer.param_groups if group["role"] == role]
        assert {group["full_rate"] for group in of_role} == {rate}
        decays = {id(one): group["weight_decay"] for group in of_role for one in group["params"]}
        wanted = {
            id(one): 0.1 if name in ("q_proj.weight", "head.weight") else 0.0
            for name, one in found.trained(role).items()
        }
        assert decays == wanted


def test_trl_sets_the_optimizer_of_ppo(stage):
    """Betas and epsilon of `trl:` reach every optimizer, ours among them."""
    given = PPOArguments(adam_beta1=0.8, adam_beta2=0.95, adam_epsilon=1e-6)
    for name in ("adamw_fused", "adamw_stochastic", "adamw_split"):
        optimizer = make_optimizer(
            replace(stage, optimizer=name), {"value_learning_rate": None}, roles(), given
        )
        assert {group["betas"] for group in optimizer.param_groups} == {(0.8, 0.95)}
        assert {group["eps"] for group in optimizer.param_groups} == {1e-6}
    plain = make_optimizer(stage, {"value_learning_rate": None}, roles(), PPOArguments())
    assert (plain.defaults["betas"], plain.defaults["eps"]) == ((0.9, 0.999), 1e-8)


@pytest.mark.parametrize("name", [name for name, one in OPTIMIZERS.items() if "cpu" in one.devices])
def test_ppo_takes_the_same_optimizers(name, stage):
    """Each is built over policy and value, steps, and has their rates, which the schedule sets."""
    found = roles()
    chosen = replace(stage, optimizer=name, learning_rate=0.1)
    optimizer = make_optimizer(chosen, {"value_learning_rate": 0.05}, found, PPOArguments())
    set_rates(optimizer, 0.5)
    rates = {group["role"]: float(group["lr"]) for group in optimizer.param_groups}
    assert rates == pytest.approx({POLICY: 0.05, VALUE: 0.025})
    before = found.trained(POLICY)["q_proj.weight"].detach().clone()
    for role in (POLICY, VALUE):
        for one in found.trained(role).values():
            one.grad = torch.ones_like(one)
    optimizer.step()
    assert not torch.equal(found.trained(POLICY)["q_proj.weight"], before)


def test_clipping_acts_and_is_recorded(make):
    """A plain step of rate 0.5 clipped at 0.001 moves the policy by at most 0.0005."""
    job = make(
        max_steps=1, ppo_epochs=1, job_judge=False, optimizer="sgd", learning_rate=0.5, warmup=0.0,
        trl={"max_grad_norm": 0.001},
    )  # fmt: skip
    resolved = trained(job)["resolved"]
    # These halves of a LoRA start at zero.
    moved = (
        sum(float((one**2).sum()) for name, one in weights(job).items() if "lora_B" in name) ** 0.5
    )
    assert 0.00025 < moved <= 0.0005 * 1.001
    assert resolved["max_grad_norm"] == 0.001


@pytest.mark.parametrize("keep_mean", [False, True])
def test_processes_whiten_over_all_their_tokens(keep_mean):
    """Whitening each process by its own numbers would hide which answers were better."""
    random = torch.Generator().manual_seed(0)
    values = torch.randn(4, 6, generator=random) + torch.tensor([[3.0], [3], [0], [0]])
    mask = (torch.rand(4, 6, generator=random) > 0.3).float()
    alone = whiten(values, mask, keep_mean=keep_mean)
    parts = [slice(0, 2), slice(2, 4)]
    # Each process sends two numbers twice, in step; what it gets back is the mean of both.
    firsts = [torch.stack([(values[part] * mask[part]).sum(), mask[part].sum()]) for part in parts]
    mean = sum(firsts)[0] / sum(firsts)[1]
    seconds = [
        torch.stack([((values[part] - mean) ** 2 * mask[part]).sum(), mask[part].sum()])
        for part in parts
    ]
    for number, part in enumerate(parts):
        rounds = iter([(firsts[number], sum(firsts) / 2), (seconds[number], sum(seconds) / 2)])

        def over(tensor: Any, rounds: Any = rounds) -> Any:
            mine, both = next(rounds)
            assert torch.allclose(tensor, mine)
            return both

        found = whiten(values[part], mask[part], keep_mean=keep_mean, over_processes=over)
        assert torch.allclose(found, alone[part], atol=1e-5)
        assert not torch.allclose(found, whiten(values[part], mask[part]), atol=0.1)


def test_the_device_is_read_once_an_inner_step(make, monkeypatch):
    """Numbers of all micro-batches are read together: one read for the two of each step."""
    reads: list[int] = []
    real_list, real = torch.Tensor.tolist, Learner.gradients

    def gradients(self, *given):
        counted = 0

        def read(tensor):
            nonlocal counted
            counted += 1
            return real_list(tensor)

        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "tolist", read)
            waits = "a micro-batch waits for the device"
            patch.setattr(torch.Tensor, "item", lambda tensor: pytest.fail(waits))
            found = real(self, *given)
        reads.append(counted)
        return found

    monkeypatch.setattr(Learner, "gradients", gradients)
    train(make(max_steps=1, grad_accum=4, minibatches=2, ppo_epochs=1, job_judge=False))
    assert reads == [1, 1]


def test_every_prompt_is_answered_once_before_any_is_answered_again():
    """Ten prompts in updates of four: each once in two and a half; then in another order."""
    seen = [one for at in range(0, 20, 4) for one in shuffled(range(10), range(at, at + 4), seed=1)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]


@pytest.mark.parametrize(
    ("scheduler", "warmup", "shares"),
    [
        ("linear", 0.2, [1 / 3, 2 / 3, *(left / 8 for left in range(8, 0, -1))]),
        ("constant", 0.5, [1.0] * 4),
        ("constant_with_warmup", 0.25, [0.5, 1.0, 1.0, 1.0]),
        ("cosine", 0.0, [1.0, 0.75, 0.25]),
        ("cosine", 0.0, [1.0, (1 + 0.5**0.5) / 2, 0.5, (1 - 0.5**0.5) / 2]),
    ],
)
def test_learning_rates(scheduler, warmup, shares):
    """Of ten updates two warm up, cosine is half way at the middle, and the last still learns."""
    count = len(shares)
    found = [rate_share(step, count, warmup=warmup, scheduler=scheduler) for step in range(count)]
    assert found == pytest.approx(shares)


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
    assert (len(roles.models()), roles.parts[REWARD].head) == (2, None)
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
