"""What the proof takes for impossible is impossible: the assumptions against the estimates they
speak of.
"""

from functools import cache

from hypothesis import given
from hypothesis import strategies as st

from advisor.advice.case import Case
from advisor.advice.facts import situation_facts
from advisor.ground.types import Answer, AnswerSet, Gpu, Hardware
from advisor.ruleset.load import load_rules
from advisor.situation.models import model_shape, shape_from_size
from advisor.situation.types import Situation
from tests.conftest import examples

RULES = load_rules()
GIB = 2**30
CHAINS = ("sft", "cpt>sft", "sft>rm>ppo", "dpo", "sft>dpo", "kto", "orpo", "grpo")
REAL = (
    "Qwen/Qwen3-8B", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-20b", "google/gemma-3-4b-it",
)  # fmt: skip


@cache
def shape(name):
    return model_shape(name)[0]


def cards(count, memory, capability, **more):
    gpu = Gpu(name="card", memory_total_bytes=memory, compute_capability=capability, **more)
    return Hardware(kind="cuda", origin="stated", gpus=(gpu,) * count)


@st.composite
def machines(draw):
    kind = draw(st.sampled_from(["cuda", "cuda", "cuda", "cpu", "unknown"]))
    memory = int(2 ** draw(st.floats(-1, 8)) * GIB)
    if kind == "cpu":
        return Hardware(kind="cpu", origin="stated", ram_total_bytes=memory)
    if kind == "unknown":
        return Hardware(kind="unknown", origin="stated")
    capability = draw(st.sampled_from([(7, 0), (7, 5), (8, 0), (9, 0), None]))
    bf16 = None if capability is None else capability >= (8, 0)
    return cards(draw(st.sampled_from([1, 1, 2, 4, 8])), memory, capability, bf16=bf16)


@st.composite
def stated(draw):
    options = {
        "data_rows": st.sampled_from([10, 500, 5000, 50_000, 1_000_000]),
        "data_tokens": st.sampled_from([10_000, 1_000_000, 100_000_000]),
        "budget_usd": st.sampled_from([1, 20, 500]),
        "budget_hours": st.sampled_from([0.5, 5, 100]),
    }
    return AnswerSet(
        known={
            fact: Answer(value=draw(values), origin="flag")
            for fact, values in options.items()
            if draw(st.booleans())
        }
    )


@st.composite
def situations(draw):
    size = draw(st.one_of(st.floats(0.05, 200), st.sampled_from(REAL)))
    model = (
        shape(size) if isinstance(size, str) else shape_from_size(int(size * 1e9), f"{size:.3g}B")
    )
    return Situation(answers=draw(stated()), hardware=draw(machines()), model=model)


@examples(5)
@given(situations(), st.sampled_from(CHAINS))
def test_a_base_in_4_bit_never_needs_more(situation, chain):
    """On no size, GPU, number of GPUs, chain, amount of data or budget: where LoRA or full
    fine-tuning fits, QLoRA does, unless the checkpoint cannot be quantised again, or the model has
    to be divided: each GPU loads a 4-bit base whole. Nor does what is estimated contradict an
    assumption.
    """
    facts = situation_facts(situation)
    fits = Case.build(situation, RULES).coarse_fits(chain)
    again = situation.model.stored is None
    assert again == (situation.model.id != "openai/gpt-oss-20b")
    possible = ("fits", "tight")
    assert not again or fits["qlora"] != "too_big" or not {fits["lora"], fits["full"]} & {*possible}
    facts |= {f"fits_{scheme}": fit for scheme, fit in fits.items()}
    assert not RULES.contradictions(facts), fits


def test_an_assumption_would_be_noticed():
    """The sampled machines include those on which one scheme fits and another does not."""
    hardware, model = cards(1, 12 * GIB, (8, 0)), shape("Qwen/Qwen3-8B")
    small = Situation(answers=AnswerSet(known={}), hardware=hardware, model=model)
    fits = Case.build(small, RULES).coarse_fits("sft")
    assert (fits["lora"], fits["qlora"]) == ("too_big", "fits")
