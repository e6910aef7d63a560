"""Advice values made by hand, one for each kind of answer, with plausible numbers, not computed."""

from typing import Any

from advisor.advice.types import (
    Advice,
    Candidate,
    Certainty,
    Chosen,
    FittedStage,
    Flip,
    GuideAnswer,
    Infeasible,
    KnownFact,
    Reason,
    WayOut,
)
from advisor.estimate.types import Estimate, MemoryEstimate, Moment, Term, WholeTime
from advisor.ground.types import (
    Answer,
    AnswerSet,
    DataFinding,
    DataProfile,
    Gpu,
    Hardware,
    ModelShape,
    Source,
    TokenStats,
)
from advisor.methods.composition import Composition, parse_composition
from advisor.plan.model import Stage
from advisor.ruleset.load import load_rules
from advisor.ruleset.phrases import method_words
from advisor.situation.types import ModelSuggestion, Situation

GIB = 2**30
CERTAIN = Certainty(evidence="medium", rests_on="the guide's own rows", strength="strong")
SCENARIO_3 = "Scenario 3: Multi-Department Enterprise AI"
SCENARIO_5 = "Scenario 5: Limited Budget, One GPU"


def machine(name: str, gib: int, *, count: int = 1, **more: Any) -> Hardware:
    """Some GPUs of one kind as a person states them."""
    cards = (Gpu(name=name, memory_total_bytes=gib * GIB, **more),) * count
    return Hardware(kind="cuda", origin="stated", gpus=cards)


RTX_4090 = machine("NVIDIA GeForce RTX 4090", 24, compute_capability=(8, 9), bf16=True)
PROBED_4090 = Hardware(
    kind="cuda", origin="probed", cpu_cores=16, driver_version="570.10", cuda_version="12.8",
    gpus=(
        Gpu(name="NVIDIA GeForce RTX 4090", memory_total_bytes=24 * GIB, bf16=True, index=0,
            memory_free_bytes=int(22.5 * GIB), compute_capability=(8, 9), uuid="GPU-1"),
    ),
    ram_total_bytes=64 * GIB, ram_free_bytes=50 * GIB, disk_free_bytes=200 * GIB,
    software={"torch": "2.13.0", "flash-attn": None},
)  # fmt: skip
CPU = Hardware(
    kind="cpu", origin="probed", cpu_cores=2, ram_total_bytes=8 * GIB, ram_free_bytes=6 * GIB,
    notes=("no NVIDIA driver found",),
)  # fmt: skip
UNKNOWN_HARDWARE = Hardware(kind="unknown", origin="unknown")

QWEN_8B = ModelShape(
    id="Qwen/Qwen3-8B", origin="catalogue", params=8_190_735_360, hidden_size=4096, layers=36,
    intermediate_size=12288, vocab_size=151936, source="config.json of 2025-07",
)  # fmt: skip


def answers(**known: Any) -> AnswerSet:
    """Answers as somebody gave them in the wizard."""
    return AnswerSet(
        known={fact: Answer(value=value, origin="asked") for fact, value in known.items()}
    )


def estimate(
    fits: str,
    peak_gib: float | None = None,
    *,
    hours: float | None = None,
    limit_gib: float | None = 24,
    least_gib: float | None = None,
    **more: Any,
) -> Estimate:
    """An Estimate of two terms, with a band of ten percent and four minutes beside the training."""
    memory = None
    if peak_gib is not None:
        peak = int(peak_gib * GIB)
        sizes = {"weights": peak * 6 // 10, "activations": peak - peak * 6 // 10}
        source = Source(title="sum of the terms", kind="derived")
        terms = tuple(
            Term(name=name, size_bytes=size, because="", source=source)
            for name, size in sizes.items()
        )
        low, high = int(peak * 0.9), int(peak * 1.1)
        memory = MemoryEstimate(
            moments=(Moment(name="forward and backward", terms=terms),), low_bytes=low,
            need_bytes=peak, need_low_bytes=low, need_high_bytes=high, high_bytes=high,
        )  # fmt: skip
    train_s = None if hours is None else hours * 3600
    return Estimate(
        fits=fits,
        memory=memory,
        least_bytes=None if least_gib is None else int(least_gib * GIB),
        limit_bytes=None if limit_gib is None else int(limit_gib * GIB),
        duration_s=train_s,
        times=train_s and WholeTime(load_s=40, before_s=75, train_s=train_s, after_s=140),
        **more,
    )


def candidate(
    composition: Composition, verdict: str, because: tuple[Reason, ...], numbers: Estimate
) -> Candidate:
    """A Candidate with the stages its composition implies, of two settings each."""
    settings = {
        "learning_rate": Chosen(value=2e-4, because="usual for LoRA", rule="document/lora-rate"),
        "micro_batch_size": Chosen(value=1, because="the largest that fits"),
    }
    stages = tuple(
        FittedStage(
            stage=Stage(
                name=objective, objective=objective, update=composition.update or "full",
                quantization=composition.quantization, learning_rate=2e-4, micro_batch_size=1,
            ),
            reasons=settings,
            cost=Estimate(fits="unknown"),
        )
        for objective in composition.chain
    )  # fmt: skip
    return Candidate(
        composition=composition, stages=stages, estimate=numbers, verdict=verdict, because=because
    )


def advice(recommendation: Candidate, situation: Situation, **more: Any) -> Advice:
    """An Advice around a recommendation; what is not given is empty."""
    known = situation.answers
    fields: dict[str, Any] = {
        "facts": {"task": known.value("task"), "budget": known.value("budget", "unknown")},
        **dict.fromkeys(("decided_by", "alternatives", "flips", "unknown", "warnings"), ()),
        "guide": None,
        "certainty": CERTAIN,
        "layers": ("document", "evidence"),
        "rules_digest": "3f9a0c",
        "methods": load_rules(("document",)).methods,
    }
    return Advice(situation=situation, recommendation=recommendation, **{**fields, **more})


def reason(text: str, rule: str, source: str = "guide, comparison table", **more: Any) -> Reason:
    return Reason(text=text, rule=rule, source=source, **more)


def memory_reason(text: str, needs: float, has: float) -> Reason:
    """What memory decides, with both numbers."""
    return reason(text, "fit/memory", "estimate", needs=needs, has=has, unit="GiB")


def too_big(text: str, needs: float, has: float = 24, **more: Any) -> Candidate:
    """An alternative that memory rules out, with the deciding numbers."""
    composition = parse_composition(text)
    why = f"{method_words(composition.scheme)} needs {needs:g} GiB, this GPU has {has:g}"
    numbers = estimate("too_big", needs, limit_gib=has, **more)
    return candidate(composition, "too_big", (memory_reason(why, needs, has),), numbers)


def lower(
    composition: str, text: str, peak_gib: float = 14.0, rule: str = "document/scenario-5"
) -> Candidate:
    """An alternative that would work and ranks lower."""
    numbers = estimate("fits", peak_gib, hours=1.2, cost_usd=0.5)
    return candidate(parse_composition(composition), "ranked_lower", (reason(text, rule),), numbers)


def recommended(composition: str, numbers: Estimate, *because: Reason) -> Candidate:
    return candidate(parse_composition(composition), "recommended", because, numbers)


def flip(to: str, effort: str, text: str, **change: Any) -> Flip:
    return Flip(change=change, to=parse_composition(to), effort=effort, text=text)


def guide(composition: str, row: str) -> GuideAnswer:
    return GuideAnswer(composition=parse_composition(composition), row=row)


def scenario_5() -> Advice:
    """The guide's scenario 5 on a stated RTX 4090 with Qwen3-8B and 5,000 rows."""
    known = (
        KnownFact(fact="budget", value="low", origin="flag"),
        KnownFact(fact="gpus", value=1, origin="probed"),
        KnownFact(fact="adapters_per", value="model", origin="concluded by document/one"),
    )
    best = "One graphics card and a low budget: QLoRA has the best price for its performance"
    profile = DataProfile(
        path="support/train.jsonl", kind="paired", format="messages", rows=5000, digest="ab12",
        mapping={"messages": "messages"}, objectives=("sft",),
        tokens=TokenStats(
            total=1_250_000, mean=250, p50=230, p90=420, p95=510, p99=900, longest=1800,
            counted_by="tokenizer of Qwen/Qwen3-8B",
        ),
        findings=(DataFinding(
            id="duplicate-rows", severity="note", text="12 rows are there twice", count=12
        ),),
        sample={"messages": [{"role": "user", "content": "secret question"}]},
    )  # fmt: skip
    given = {"task": "customer_service", "budget": "low", "data_path": "support/train.jsonl"}
    one_task = "pays where many tasks share one base; there is one task here"
    unsuited = "needs pairs of better and worse answers; the data holds requests with one answer"
    return advice(
        recommended(
            "sft+qlora",
            estimate(
                "fits", 9.1, hours=1.4, cost_usd=0.6, least_gib=7.4,
                cost_note="RTX 4090 at $0.34/h, vast, 2026-08",
            ),
            reason(best, "document/scenario-5", "guide, Scenario 5", facts=known),
            memory_reason("LoRA without compression would use most of the card", 19.8, 24),
        ),
        Situation(
            answers=answers(**given, model="Qwen/Qwen3-8B"),
            hardware=RTX_4090, data=profile, model=QWEN_8B,
        ),
        decided_by=("document/scenario-5", "document/scenario-1"),
        guide=guide("sft+qlora", SCENARIO_5),
        alternatives=(
            lower("sft+lora", "more memory for little gain when money is short", 19.8),
            lower("sft+adapter", one_task, 18.2),
            lower("sft+prefix", "weaker than LoRA on hard tasks", 17.5),
            too_big("sft+full", 78.1),
            candidate(
                parse_composition("sft>rm>ppo+qlora"), "forbidden",
                (reason(unsuited, "document/data-for-rlhf"),),
                estimate("fits", 21.0, hours=9.0, cost_usd=3.1),
            ),
        ),
        flips=(
            flip("sft+full", "money", "if you chose a high budget and you trained on H100 80GB",
                 budget="high", gpu="H100 80GB"),
            flip("sft+lora", "money", "if you trained on one A100 80GB", gpu="A100 80GB"),
            flip("sft+lora", "answer", "if you chose a medium budget", budget="medium"),
        ),
        unknown=("serve_with", "priority"),
        warnings=("the data has 12 rows twice",),
    )  # fmt: skip


def scenario_3() -> Advice:
    """The guide's scenario 3: twelve departments' adapters on a probed base; evidence says LoRA."""
    one_each = "Several departments share one model: one base, one adapter each"
    named = "the guide names adapters for this case"
    not_known = ("the number of examples is not known",)
    return advice(
        recommended(
            "sft+adapter@per_task",
            estimate("may_fit", 21.7, limit_gib=22.5, unknown=not_known),
            reason(one_each, "document/scenario-3", "guide, Scenario 3"),
        ),
        Situation(
            answers=answers(task="multi_department", n_tasks=12, signals=("access_control",)),
            hardware=PROBED_4090,
            suggestion=ModelSuggestion(
                model="Qwen/Qwen3-4B-Instruct-2507", source="model card, 2026-09",
                because="Apache-2.0, many languages, fits with room",
            ),
        ),
        decided_by=("document/scenario-3",),
        guide=guide("sft+adapter@per_task", SCENARIO_3),
        alternatives=(
            lower("sft+lora@per_task", named, rule="document/scenario-3"),
            lower("sft+qlora@per_task", named, 8.0, "document/scenario-3"),
            too_big("sft+full", 78.1, 22.5),
            lower(
                "sft>rm>ppo+lora", "the task is no open conversation", rule="document/principle-2"
            ),
        ),
        unknown=("data.rows", "data.tokens"),
    )  # fmt: skip


def scenario_4() -> Advice:
    """The guide's scenario 4: chat by SFT, reward model and PPO, where evidence would take DPO."""
    told = answers(
        task="chat_assistant", budget="high", depth="alignment", data_kind="preference",
        data_rows=40_000,
    )  # fmt: skip
    three = "An assistant that people talk to: SFT, then a reward model, then RLHF"
    pairs = "learns from the same pairs without a reward model; the guide does not know it"
    note = "A100 80GB at $2.21/h"
    return advice(
        recommended(
            "sft>rm>ppo+lora",
            estimate("fits", 61.3, hours=53.5, cost_usd=118, limit_gib=80, cost_note=note),
            reason(three, "document/scenario-4", "guide, Scenario 4"),
        ),
        Situation(answers=told, hardware=machine("A100 80GB", 80, count=2), model=QWEN_8B),
        decided_by=("document/scenario-4",),
        guide=guide("sft>rm>ppo+lora", "Scenario 4: Building a ChatGPT-like Assistant"),
        alternatives=(
            lower("sft>dpo+lora", pairs, rule="evidence/dpo"),
            lower("sft+lora", "does not ensure alignment", rule="document/sft"),
            lower("sft>rm>ppo+qlora", "the card has room for more", 40.0),
            too_big("sft>rm>ppo+full", 312.0, 80),
        ),
    )


def remedy_alone() -> Advice:
    """Facts that change often: look them up, train nothing. The guide alone would train."""
    rule = "evidence/volatile-facts"
    soon_wrong = "would learn facts that are soon wrong"
    told = answers(task="qa", signals=("facts_change_often",))
    return advice(
        recommended(
            "rag",
            estimate("unknown", limit_gib=None),
            reason(
                "Facts that change every few weeks are looked up, not learned", rule,
                "Ovadia et al. 2023, arXiv:2312.05934",
            ),
        ),
        Situation(answers=told, hardware=CPU),
        decided_by=(rule,),
        guide=guide("sft+lora", "Scenario 1: Customer Service Bots, Business Q&A"),
        alternatives=(
            lower("rag & sft+lora", "only if the tone must change too", rule=rule),
            lower("sft+lora", soon_wrong, rule=rule),
            lower("sft+qlora", soon_wrong, rule=rule),
        ),
        flips=(
            flip("sft+lora", "answer", "if the facts did not change every few weeks",
                 facts_change_often=False),
        ),
        unknown=("budget", "data.path", "model"),
    )  # fmt: skip


def nothing_fits() -> Advice:
    """A 70B model and a card of 8 GiB: exit code 3, with what would fit."""
    llama = ModelShape(
        id="meta-llama/Llama-3.3-70B-Instruct", origin="catalogue", params=70_553_706_496,
        gated=True,
    )  # fmt: skip
    nearest = too_big("sft+qlora", 46.2, 8, hours=30.0, cost_usd=9.0)
    smaller = "No way of training fits the hardware and the budget, so a smaller model is needed."
    way_out = WayOut(
        text="a smaller model, Qwen/Qwen3-4B (4.0B parameters), fits with sft+qlora",
        change={"model": "Qwen/Qwen3-4B"}, to=parse_composition("sft+qlora"),
        command="advise run --task generation --budget low --model Qwen/Qwen3-4B --gpu 'RTX 3070'",
    )  # fmt: skip
    blame = (
        Reason(text="the model: meta-llama/Llama-3.3-70B-Instruct, 70.6B parameters"),
        Reason(text="the hardware: 1 x RTX 3070 with 8.0 GiB"),
    )
    ada = "RTX 6000 Ada 48GB"
    return advice(
        recommended(
            "smaller_model", nearest.estimate,
            reason(smaller, "base/smaller-model", "estimate"), *nearest.because,
        ),
        Situation(
            answers=answers(task="generation", budget="low", model=llama.id),
            hardware=machine("RTX 3070", 8), model=llama,
        ),
        decided_by=("document/scenario-5", "base/smaller-model"),
        guide=guide("sft+qlora", SCENARIO_5),
        alternatives=(
            nearest, too_big("sft+lora", 152.0, 8), too_big("sft+full", 1120.0, 8),
            too_big("sft+adapter", 150.0, 8),
        ),
        flips=(
            flip("sft+qlora", "answer", "if you started from Qwen/Qwen3-4B", model="Qwen/Qwen3-4B"),
            flip("sft+qlora", "money", f"if you trained on {ada}", gpu=ada),
        ),
        nothing_fits=Infeasible(nearest=nearest, blame=blame, ways_out=(way_out,)),
    )  # fmt: skip


def hardware_unknown() -> Advice:
    """Nobody said where it will run, nor with which model: fit, time and cost are unknown."""
    unknown = ("the card is not known", "the number of examples is not known")
    text = "Texts in a given style: LoRA with supervised examples"
    return advice(
        recommended(
            "sft+lora",
            estimate("unknown", limit_gib=None, unknown=unknown),
            reason(text, "document/scenario-6", "guide, Scenario 6"),
        ),
        Situation(answers=answers(task="generation"), hardware=UNKNOWN_HARDWARE),
        decided_by=("document/scenario-6",),
        guide=guide("sft+lora", "Scenario 6: Text Generation (Writing, Summaries, Rewriting)"),
        alternatives=(
            lower("sft+full", "dearer, and style needs no deep change", 130.0),
            lower("sft+qlora", "saves memory nobody said is short", 9.1),
        ),
        unknown=("gpu", "data.rows", "model"),
    )


def injected() -> Advice:
    """Names and texts that try to break out of markup."""
    evil = "<script>alert(1)</script>[bold]&amp;\x1b[2J"
    model = ModelShape(id=f"evil/{evil}", origin="folder", params=1_000_000, note=evil)
    profile = DataProfile(
        path=f"/data/{evil}.jsonl", kind="paired", format="messages", mapping={evil: evil}, rows=3,
        tokens=None, objectives=("sft",), sample={"text": evil},
    )  # fmt: skip
    told = answers(task="other", model=model.id)
    return advice(
        recommended("sft+lora", estimate("fits", 1.0), reason(evil, evil, evil)),
        Situation(answers=told, hardware=RTX_4090, data=profile, model=model),
        warnings=(evil,),
        unknown=(evil,),
        decided_by=(evil,),
        guide=guide("sft+qlora", evil),
        flips=(flip("sft+full", "data", evil, **{evil: evil}),),
    )


EXAMPLES = {
    make.__name__: make
    for make in (scenario_5, scenario_3, scenario_4, remedy_alone, nothing_fits, hardware_unknown)
}
