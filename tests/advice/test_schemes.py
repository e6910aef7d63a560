"""Which weights move, and whether the base is quantised: never a lower scheme for more of anything,
and the model that is suggested counts like one that is named.
"""

import random

import pytest
from msgspec.structs import replace

from advisor.advice.advise import advise, open_case
from advisor.ground.errors import InputError
from advisor.ground.types import Answer, AnswerSet, Hardware
from advisor.ground.units import GIB
from advisor.ruleset.facts import load_facts
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from tests.advice.situations import UNKNOWN_MACHINE
from tests.conftest import scaled

RULES, GUIDE = load_rules(("document", "evidence")), load_rules(("document",))
FACTS = load_facts()
MODELS = (
    "Qwen/Qwen3-0.6B",
    "Qwen/Qwen3-1.7B",
    "Qwen/Qwen3-8B",
    "Qwen/Qwen3-14B",
    "meta-llama/Llama-3.1-70B",
    "HuggingFaceTB/SmolLM2-135M-Instruct",
)
CARDS = ("RTX 4060 8GB", "RTX 3060 12GB", "T4", "RTX 4090", "L40S", "A100 80GB", "H200")
ROWS = (1200, 1999, 2000, 9_999, 30_000, 99_999, 100_001, 300_000, 1_500_000)
TOKENS = (50_000, 30_000_000, 600_000_000, 2_000_000_000)
KINDS = ("paired", "raw_text", "preference", "unpaired_feedback", "prompts_with_verifier")
ORDER = {"full": 3, "lora": 2, "qlora": 1}  # by what they can learn; others serve another end


def random_known(seed, *, model=0.6):
    """What somebody states of a job whose data and hardware are known."""
    rng = random.Random(seed)
    known = {
        "task": rng.choice(list(FACTS["task"].values)),
        "gpu": rng.choice(CARDS),
        "data_kind": rng.choice(KINDS),
        "data_rows": rng.choice(ROWS),
    }
    for share, name, values in (
        (0.5, "budget", FACTS["budget"].values),
        (0.4, "depth", FACTS["depth"].values),
        (0.3, "serve_with", FACTS["serve_with"].values),
        (0.3, "priority", FACTS["priority"].values),
        (0.15, "n_tasks", (2, 12)),
        (0.3, "gpus", (2, 4, 8)),
        (0.4, "data_tokens", TOKENS),
        (model, "model", MODELS),
    ):
        if rng.random() < share:
            known[name] = rng.choice(list(values))
    signals = [fact.id for fact in FACTS.values() if fact.signal]
    if stated := rng.sample(signals, rng.choice((0, 0, 1, 2))):
        known["signals"] = tuple(stated)
    return known


def decided(**known):
    """The case and its decision; None where the answers contradict each other."""
    stated = {name: Answer(value=value, origin="flag") for name, value in known.items()}
    try:
        case = open_case(situation_of(AnswerSet(known=stated), probed=UNKNOWN_MACHINE), RULES)
    except InputError:
        return None
    return case, case.decision


def answer(**known):
    """The composition that is recommended."""
    return str(decided(**known)[1].composition)


# --------------------------------------------------------------------------- the suggested model


@pytest.mark.parametrize("batch", range(3))
def test_naming_the_suggested_model_changes_nothing(batch):
    """Once data and hardware are known: neither the composition nor what fits nor any other fact."""
    compared = 0
    for seed in range(batch, scaled(60), 3):
        known = random_known(seed, model=0)
        if (found := decided(**known)) is None:
            continue
        case, decision = found
        named = decided(**known, model=case.situation.suggestion.model)[1]
        assert str(named.composition) == str(decision.composition), known
        assert {key: value for key, value in named.facts.items() if key != "model"} == dict(
            decision.facts
        ), known
        compared += 1
    assert compared > scaled(60) // 4


@pytest.mark.parametrize(
    "gpu",
    ["RTX 4090", "RTX 3090", "RTX 4060", "RTX 4060 Laptop", "A100 80GB", "M3 Max 36GB", "none"],
)
@pytest.mark.parametrize("kind", ["paired", "raw_text", "preference", "unpaired_feedback"])
def test_a_newcomer_and_an_expert_get_one_method(gpu, kind):
    """On each kind of machine, with each kind of data and little money: who names the model that
    would be suggested gets what the one gets who names none.
    """
    known = {
        "task": "qa", "budget": "low", "gpu": gpu, "data_kind": kind, "data_rows": 300,
    }  # fmt: skip
    case, decision = decided(**known)
    named = decided(**known, model=case.situation.suggestion.model)[1]
    assert str(named.composition) == str(decision.composition)


def test_a_suggested_model_fits_by_the_upper_end_of_its_estimate():
    """The largest of the table that does so; where none does, the suggestion says it."""
    models = set()
    for seed in range(scaled(60)):
        if (found := decided(**random_known(1000 + seed, model=0))) is None:
            continue
        case, decision = found
        if not decision.trains or decision.nothing_fits:
            continue
        cost = case.cost_of(decision.composition)[1]
        models.add(case.situation.model.id)
        assert (
            cost.memory.need_high_bytes <= cost.limit_bytes
            or "not even this one" in case.situation.suggestion.because
        )
    assert len(models) > 2


def test_more_memory_never_suggests_a_smaller_model():
    """Nor the same one with a lower scheme."""
    for seed in range(scaled(12)):
        known = {**random_known(2000 + seed, model=0), "gpu": "RTX 4090"}
        known.pop("gpus", None)
        before = (0.0, 0)
        for gib in (4, 6, 8, 12, 16, 24, 48, 80):
            if (found := decided(**known, gpu_memory_gib=gib)) is None:
                break
            case, decision = found
            if case.situation.model not in [one.shape for one in case.situation.suggested]:
                break
            now = (case.situation.model.params, ORDER.get(str(decision.composition.scheme), 0))
            assert now >= before or not decision.trains, (known, gib)
            before = max(before, now)


@pytest.mark.parametrize("card", ["RTX 4090", "RTX 3090", "A100 80GB"])
def test_a_newcomer_with_little_money_gets_lora_where_it_fits(card):
    """The same with the model named and not named, and no sentence says that it is not known."""
    known = {"task": "customer_service", "data_kind": "paired", "data_rows": 300, "budget": "low"}
    answers = AnswerSet(
        known={
            name: Answer(value=value, origin="flag")
            for name, value in {**known, "gpu": card}.items()
        }
    )
    found = advise(situation_of(answers, probed=UNKNOWN_MACHINE), RULES, GUIDE)
    assert str(found.recommendation.composition) == "sft+lora"
    assert found.facts["fits_lora"] == "fits"
    texts = [
        reason.text for one in (found.recommendation, *found.alternatives) for reason in one.because
    ]
    assert not any("not known" in text for text in texts)


@pytest.mark.parametrize("origin", ["probed", "stated"])
def test_a_known_gpu_alone_keeps_the_guides_answer(origin):
    """Task and budget are what two scenarios of the guide state. As long as nothing is said of the
    data, what fits is not known of a suggestion, on a probed GPU as on a named one; the reasons
    say why.
    """
    named = {"task": "qa", "budget": "low", "gpu": "RTX 4090"}
    stated = {name: Answer(value=value, origin="flag") for name, value in named.items()}
    hardware = situation_of(AnswerSet(known=stated), probed=UNKNOWN_MACHINE).hardware
    if origin == "probed":
        del stated["gpu"]
    probed = replace(hardware, origin="probed")
    found = advise(situation_of(AnswerSet(known=stated), probed=probed), RULES, GUIDE)
    assert str(found.recommendation.composition) == "sft+qlora" == str(found.guide.composition)
    assert found.facts["fits_lora"] == "unknown"
    lora = next(one for one in found.alternatives if str(one.composition) == "sft+lora")
    assert "did not say what your data are" in lora.because[0].text


# --------------------------------------------------------------------------- more of anything


def series(known):
    """Questions that differ in the amount of one thing, the least first."""
    one_kind = {name: value for name, value in known.items() if name != "gpu_memory_gib"}
    yield "GPUs", [{**one_kind, "gpus": count} for count in (1, 2, 4, 8)]
    yield "memory", [{**one_kind, "gpu": "RTX 4090", "gpu_memory_gib": gib}
                     for gib in (6, 8, 12, 16, 24, 32, 48, 80, 141)]  # fmt: skip
    yield "money", [{**one_kind, "budget": word} for word in ("low", "medium", "high")]
    yield "rows", [{**one_kind, "data_rows": rows} for rows in ROWS]


def is_divided(case, decision):
    """Whether the GPUs hold one model together."""
    if not decision.trains:
        return False
    sharing = case.cost_of(decision.composition)[0][0].reasons.get("sharding")
    return sharing is not None and sharing.value == "fsdp"


@pytest.mark.parametrize("batch", range(4))
def test_more_of_anything_never_brings_a_lower_scheme(batch):
    """More memory, GPUs, money or rows with one model and one chain: full fine-tuning, LoRA and
    QLoRA follow each other upwards only, and what could be trained still can be. Only GPUs that
    cannot load a 4-bit base whole hold LoRA together that larger ones would not.
    """
    compared = 0
    for seed in range(batch, scaled(60), 4):
        known = random_known(3000 + seed, model=1)
        for what, questions in series(known):
            before, was_divided = None, False
            for question in questions:
                if (found := decided(**question)) is None:
                    continue
                decision = found[1]
                if before is not None and before.trains and before.chain == decision.chain:
                    told = (what, question, str(before.composition), str(decision.composition))
                    assert not decision.nothing_fits or before.nothing_fits, told
                    schemes = [str(one.composition.scheme) for one in (before, decision)]
                    if (
                        decision.trains
                        and not was_divided
                        and all(scheme in ORDER for scheme in schemes)
                    ):
                        assert ORDER[schemes[1]] >= ORDER[schemes[0]], told
                        compared += 1
                before, was_divided = decision, is_divided(*found)
    assert compared > 4


def test_several_gpus_are_never_worse_than_one_of_them():
    """Where a copy on each leaves too little room, one GPU alone trains, and the plan starts one
    process.
    """
    known = {
        "task": "qa", "data_kind": "paired", "data_rows": 3000, "model": "Qwen/Qwen3-8B",
        "gpu": "RTX 4090",
    }  # fmt: skip
    used = set()
    for tenths in range(190, 250, 5):
        one, two = (decided(**known, gpu_memory_gib=tenths / 10, gpus=count) for count in (1, 2))
        assert ORDER[two[1].composition.scheme] >= ORDER[one[1].composition.scheme]
        stages = two[0].cost_of(two[1].composition)[0]
        used.add("ddp" if "sharding" in stages[0].reasons else "alone")
    assert used == {"ddp", "alone"}


# --------------------------------------------------------------------------- classes of situations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("task", ["multi_department", "chat_assistant", "reasoning", "qa"])
def test_each_tenant_gets_a_lora(task, kind):
    """Whatever the model learns from, as long as a model that writes is trained."""
    found = decided(task=task, data_kind=kind, data_rows=20_000, n_tasks=20, gpu="unknown")
    if found is not None and found[1].trains:
        assert str(found[1].composition).endswith("+lora@per_task")


def test_the_guides_adapter_stays_where_its_scenario_alone_is_stated():
    """A number of tasks is part of it; anything else makes it a LoRA each."""
    alone = {"task": "multi_department", "n_tasks": 9, "gpu": "unknown"}
    assert answer(**alone) == "sft+adapter@per_task"
    for more in ({"data_kind": "paired"}, {"budget": "low"}, {"model": "Qwen/Qwen3-8B"}):
        assert answer(**{**alone, **more}) == "sft+lora@per_task"


@pytest.mark.parametrize("gib", [3, 4, 5, 6, 8, 12, 24])
@pytest.mark.parametrize("model", ["Qwen/Qwen3-0.6B", "Qwen/Qwen3-1.7B"])
def test_a_small_base_is_quantised_only_where_it_does_not_fit_otherwise(model, gib):
    """Whatever there is of money and rows."""
    for budget in FACTS["budget"].values:
        for rows in (300, 5000, 200_000):
            found = decided(
                task="code", data_kind="paired", data_rows=rows, model=model, budget=budget,
                gpu="RTX 4090", gpu_memory_gib=gib,
            )  # fmt: skip
            decision = found[1]
            if decision.composition.quantization is not None:
                assert decision.facts["fits_lora"] == "too_big"


def test_text_trains_every_weight_only_with_tokens_or_money():
    """A billion tokens, or a high budget; where the scenario alone is stated the guide decides."""
    text = {"task": "domain_expertise", "data_kind": "raw_text", "gpu": "unknown"}
    assert answer(**text) == "cpt>sft+lora"
    assert answer(**text, data_tokens=600_000_000, depth="domain_knowledge") == "cpt>sft+lora"
    assert answer(**text, data_tokens=2_000_000_000) == "cpt>sft+full"
    assert answer(**text, budget="high") == "cpt>sft+full"
    assert answer(task="domain_expertise", gpu="unknown") == "cpt>sft+full"


def test_a_small_model_is_trained_whole_from_two_thousand_rows_on():
    """Unless it must not forget, the computer's memory is small, or each task has a module."""
    known = {"task": "generation", "data_kind": "paired", "model": "Qwen/Qwen3-0.6B", "gpu": "H200"}
    assert answer(**known, data_rows=2000) == "sft+full"
    assert answer(**known, data_rows=1999) == "sft+lora"
    assert answer(**known, data_rows=5000, priority="retain_general_ability") == "sft+lora"
    assert answer(**known, data_rows=5000, signals=("host_memory_limited",)) == "sft+lora"
    assert answer(**known, data_rows=5000, n_tasks=3) == "sft+lora@per_task"


@pytest.mark.parametrize("total_gib", [8, 16, 64])
def test_memory_that_is_free_just_now_changes_no_answer(total_gib):
    """Advice reckons with what is installed: nothing it says depends on the hour."""
    told = set()
    for free_gib in (1, total_gib // 2, total_gib):
        machine = Hardware(
            kind="cpu", origin="probed", cpu_cores=4, ram_total_bytes=total_gib * GIB,
            ram_kept_free_bytes=GIB, ram_free_bytes=free_gib * GIB,
        )  # fmt: skip
        for model in (None, "Qwen/Qwen3-1.7B"):
            named = {"task": "qa", "data_kind": "paired", "data_rows": 900, "model": model}
            stated = {
                name: Answer(value=value, origin="flag")
                for name, value in named.items()
                if value is not None
            }
            case = open_case(situation_of(AnswerSet(known=stated), probed=machine), RULES)
            decision = case.decision
            cost = case.cost_of(decision.composition)[1] if decision.composition.chain else None
            told.add((model, str(decision.composition), case.situation.model.id, str(cost)))
    assert len(told) == 2


def test_four_bit_is_the_last_resort_on_a_processor():
    """LoRA wherever it fits at all, however little money there is."""
    for total_gib in (4, 8, 16, 32, 64):
        machine = Hardware(
            kind="cpu", origin="probed", cpu_cores=4, ram_total_bytes=total_gib * GIB
        )
        named = {"task": "qa", "data_kind": "paired", "data_rows": 900, "budget": "low"}
        for model in ("Qwen/Qwen3-1.7B", "Qwen/Qwen3-4B"):
            stated = {
                name: Answer(value=value, origin="flag")
                for name, value in {**named, "model": model}.items()
            }
            decision = open_case(
                situation_of(AnswerSet(known=stated), probed=machine), RULES
            ).decision
            if decision.composition.quantization is not None:
                assert decision.facts["fits_lora"] == "too_big"
