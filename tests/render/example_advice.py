"""Advice values made by hand, one for each kind of answer there is.

Numbers are plausible, not computed.
"""

from __future__ import annotations

from collections.abc import Mapping
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
from advisor.methods.composition import Composition
from advisor.plan.model import Stage
from advisor.ruleset.phrases import method_words
from advisor.situation.types import ModelSuggestion, Situation

GIB = 2**30
FORMULA = Source(title="sum of the terms", kind="derived")
CERTAIN = Certainty(evidence="medium", rests_on="the guide's own rows", strength="strong")

# The shape that rules/document/methods.yaml gives: the guide's comparison table.
METHODS: Mapping[str, Mapping[str, Any]] = {
    "full": {
        "name": "Full fine-tuning",
        "cost": 5,
        "performance": 5,
        "data": "large",
        "ideal": "deep domain customization",
        "pros": ["best performance"],
        "cons": ["very expensive"],
    },
    "adapter": {
        "name": "Adapter",
        "cost": 2,
        "performance": 3,
        "data": "medium",
        "ideal": "many tasks on one base",
        "pros": ["modular"],
        "cons": ["slightly weaker"],
    },
    "lora": {
        "name": "LoRA",
        "cost": 2,
        "performance": 4,
        "data": "medium",
        "ideal": "most enterprise applications",
        "pros": ["little memory"],
        "cons": ["weaker on very complex tasks"],
    },
    "qlora": {
        "name": "QLoRA",
        "cost": 1,
        "performance": 4,
        "data": "medium",
        "ideal": "a low budget and one GPU",
        "pros": ["least memory"],
        "cons": ["somewhat slower"],
    },
    "sft": {
        "name": "SFT",
        "cost": 2,
        "performance": 3,
        "data": "paired",
        "ideal": "instruction tasks, formatting",
        "pros": ["simple"],
        "cons": ["no full alignment"],
    },
    "rlhf": {
        "name": "RLHF / PPO",
        "cost": 5,
        "performance": 5,
        "data": "high",
        "ideal": "chat assistants, safety",
        "pros": ["natural conversation"],
        "cons": ["complex"],
    },
}

RTX_4090 = Hardware(
    kind="cuda",
    origin="stated",
    gpus=(
        Gpu(
            name="NVIDIA GeForce RTX 4090",
            memory_total_bytes=24 * GIB,
            compute_capability=(8, 9),
            bf16=True,
        ),
    ),
)
PROBED_4090 = Hardware(
    kind="cuda",
    origin="probed",
    gpus=(
        Gpu(
            name="NVIDIA GeForce RTX 4090",
            memory_total_bytes=24 * GIB,
            memory_free_bytes=int(22.5 * GIB),
            compute_capability=(8, 9),
            bf16=True,
            uuid="GPU-1",
            index=0,
        ),
    ),
    cpu_cores=16,
    ram_total_bytes=64 * GIB,
    ram_free_bytes=50 * GIB,
    disk_free_bytes=200 * GIB,
    driver_version="570.10",
    cuda_version="12.8",
    software={"torch": "2.13.0", "flash-attn": None},
)
CPU = Hardware(
    kind="cpu",
    origin="probed",
    cpu_cores=2,
    ram_total_bytes=8 * GIB,
    ram_free_bytes=6 * GIB,
    notes=("no NVIDIA driver found",),
)
UNKNOWN_HARDWARE = Hardware(kind="unknown", origin="unknown")

QWEN_8B = ModelShape(
    id="Qwen/Qwen3-8B",
    origin="catalogue",
    params=8_190_735_360,
    hidden_size=4096,
    layers=36,
    intermediate_size=12288,
    vocab_size=151936,
    source="config.json of 2025-07",
)


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
    usd: float | None = None,
    limit_gib: float | None = 24,
    note: str = "",
    unknown: tuple[str, ...] = (),
    least_gib: float | None = None,
) -> Estimate:
    """An Estimate of two terms, with a band of ten percent, and four minutes beside the
    training.
    """
    memory = None
    if peak_gib is not None:
        peak = int(peak_gib * GIB)
        weights = peak * 6 // 10
        terms = (
            Term(name="weights", size_bytes=weights, because="8.19B parameters", source=FORMULA),
            Term(
                name="activations",
                size_bytes=peak - weights,
                because="1 row of 1024 tokens",
                source=FORMULA,
            ),
        )
        memory = MemoryEstimate(
            moments=(Moment(name="forward and backward", terms=terms),),
            low_bytes=int(peak * 0.9),
            need_bytes=peak,
            need_low_bytes=int(peak * 0.9),
            need_high_bytes=int(peak * 1.1),
            high_bytes=int(peak * 1.1),
        )
    return Estimate(
        fits=fits,
        memory=memory,
        least_bytes=None if least_gib is None else int(least_gib * GIB),
        limit_bytes=None if limit_gib is None else int(limit_gib * GIB),
        duration_s=None if hours is None else hours * 3600,
        times=(
            None
            if hours is None
            else WholeTime(load_s=40, before_s=75, train_s=hours * 3600, after_s=140)
        ),
        cost_usd=usd,
        cost_note=note,
        unknown=unknown,
    )


def stages(composition: Composition) -> tuple[FittedStage, ...]:
    """The stages of a composition with two settings each."""
    settings = {
        "learning_rate": Chosen(value=2e-4, because="usual for LoRA", rule="document/lora-rate"),
        "micro_batch_size": Chosen(value=1, because="the largest that fits"),
    }
    return tuple(
        FittedStage(
            stage=Stage(
                name=objective,
                objective=objective,
                update=composition.update or "full",
                quantization=composition.quantization,
                learning_rate=2e-4,
                micro_batch_size=1,
            ),
            reasons=settings,
            cost=Estimate(fits="unknown"),
        )
        for objective in composition.chain
    )


def candidate(
    composition: Composition, verdict: str, because: tuple[Reason, ...], numbers: Estimate
) -> Candidate:
    """A Candidate with the stages its composition implies."""
    return Candidate(
        composition=composition,
        stages=stages(composition),
        estimate=numbers,
        verdict=verdict,
        because=because,
    )


def training(chain: str, scheme: str, **more: Any) -> Composition:
    """'sft>rm>ppo', 'qlora' as a Composition."""
    update, quantization = ("lora", "nf4") if scheme == "qlora" else (scheme, None)
    return Composition(
        chain=tuple(chain.split(">")), update=update, quantization=quantization, **more
    )


def advice(recommendation: Candidate, situation: Situation, **more: Any) -> Advice:
    """An Advice around a recommendation; what is not given is empty."""
    fields: dict[str, Any] = {
        "facts": {
            "task": situation.answers.value("task"),
            "budget": situation.answers.value("budget", "unknown"),
        },
        "decided_by": (),
        "guide": None,
        "alternatives": (),
        "flips": (),
        "unknown": (),
        "warnings": (),
        "certainty": CERTAIN,
        "layers": ("document", "evidence"),
        "rules_digest": "3f9a0c",
        "methods": METHODS,
    }
    return Advice(situation=situation, recommendation=recommendation, **{**fields, **more})


def too_big(chain: str, scheme: str, needs: float, has: float = 24) -> Candidate:
    """An alternative that memory rules out, with the deciding numbers."""
    reason = Reason(
        text=f"{method_words(scheme)} needs {needs:g} GiB, this GPU has {has:g}",
        rule="fit/memory",
        source="estimate",
        needs=needs,
        has=has,
        unit="GiB",
    )
    return candidate(
        training(chain, scheme), "too_big", (reason,), estimate("too_big", needs, limit_gib=has)
    )


def lower(
    composition: Composition,
    text: str,
    peak_gib: float = 14.0,
    rule: str = "document/scenario-5",
    hours: float = 1.2,
) -> Candidate:
    """An alternative that would work and ranks lower."""
    return candidate(
        composition,
        "ranked_lower",
        (Reason(text=text, rule=rule, source="guide, comparison table"),),
        estimate("fits", peak_gib, hours=hours, usd=0.5),
    )


def scenario_5() -> Advice:
    """The guide's scenario 5 on a stated RTX 4090 with Qwen3-8B and 5,000 rows."""
    because = (
        Reason(
            text="One graphics card and a low budget: QLoRA has the best price for its performance",
            rule="document/scenario-5",
            source="guide, Scenario 5",
            facts=(
                KnownFact(fact="budget", value="low", origin="flag"),
                KnownFact(fact="gpus", value=1, origin="probed"),
                KnownFact(fact="adapters_per", value="model", origin="concluded by document/one"),
            ),
        ),
        Reason(
            text="LoRA without compression would use most of the card",
            rule="fit/memory",
            source="estimate",
            needs=19.8,
            has=24,
            unit="GiB",
        ),
    )
    note = "RTX 4090 at $0.34/h, vast, 2026-08"
    profile = DataProfile(
        path="support/train.jsonl",
        kind="paired",
        format="messages",
        mapping={"messages": "messages"},
        rows=5000,
        tokens=TokenStats(
            total=1_250_000,
            mean=250,
            p50=230,
            p90=420,
            p95=510,
            p99=900,
            longest=1800,
            counted_by="tokenizer of Qwen/Qwen3-8B",
        ),
        objectives=("sft",),
        findings=(
            DataFinding(
                id="duplicate-rows", severity="note", text="12 rows are there twice", count=12
            ),
        ),
        sample={"messages": [{"role": "user", "content": "secret question"}]},
        digest="ab12",
    )
    return advice(
        candidate(
            training("sft", "qlora"),
            "recommended",
            because,
            estimate("fits", 9.1, hours=1.4, usd=0.6, note=note, least_gib=7.4),
        ),
        Situation(
            answers=answers(
                task="customer_service",
                budget="low",
                data_path="support/train.jsonl",
                model="Qwen/Qwen3-8B",
            ),
            hardware=RTX_4090,
            data=profile,
            model=QWEN_8B,
        ),
        decided_by=("document/scenario-5", "document/scenario-1"),
        guide=GuideAnswer(
            composition=training("sft", "qlora"), row="Scenario 5: Limited Budget, One GPU"
        ),
        alternatives=(
            lower(training("sft", "lora"), "more memory for little gain when money is short", 19.8),
            lower(
                training("sft", "adapter"),
                "pays where many tasks share one base; there is one task here",
                18.2,
            ),
            lower(training("sft", "prefix"), "weaker than LoRA on hard tasks", 17.5),
            too_big("sft", "full", 78.1),
            candidate(
                training("sft>rm>ppo", "qlora"),
                "forbidden",
                (
                    Reason(
                        text=(
                            "needs pairs of better and worse answers; the data holds requests with"
                            " one answer"
                        ),
                        rule="document/data-for-rlhf",
                        source="guide, comparison table",
                    ),
                ),
                estimate("fits", 21.0, hours=9.0, usd=3.1),
            ),
        ),
        flips=(
            Flip(
                change={"budget": "high", "gpu": "H100 80GB"},
                to=training("sft", "full"),
                effort="money",
                text="if you chose a high budget and you trained on H100 80GB",
            ),
            Flip(
                change={"gpu": "A100 80GB"},
                to=training("sft", "lora"),
                effort="money",
                text="if you trained on one A100 80GB",
            ),
        ),
        unknown=("serve_with", "priority"),
        warnings=("the data has 12 rows twice",),
    )


def scenario_3() -> Advice:
    """The guide's scenario 3: one base, an adapter for each of twelve departments, hardware probed;
    evidence says LoRA first.
    """
    because = (
        Reason(
            text="Several departments share one model: one base, one adapter each",
            rule="document/scenario-3",
            source="guide, Scenario 3",
        ),
    )
    return advice(
        candidate(
            training("sft", "adapter", per_task=True),
            "recommended",
            because,
            estimate(
                "may_fit", 21.7, limit_gib=22.5, unknown=("the number of examples is not known",)
            ),
        ),
        Situation(
            answers=answers(task="multi_department", n_tasks=12, signals=("access_control",)),
            hardware=PROBED_4090,
            suggestion=ModelSuggestion(
                model="Qwen/Qwen3-4B-Instruct-2507",
                because="Apache-2.0, many languages, fits with room",
                source="model card, 2026-09",
            ),
        ),
        decided_by=("document/scenario-3",),
        guide=GuideAnswer(
            composition=training("sft", "adapter", per_task=True),
            row="Scenario 3: Multi-Department Enterprise AI",
        ),
        alternatives=(
            lower(
                training("sft", "lora", per_task=True),
                "the guide names adapters for this case",
                rule="document/scenario-3",
            ),
            lower(
                training("sft", "qlora", per_task=True),
                "the guide names adapters for this case",
                8.0,
                rule="document/scenario-3",
            ),
            too_big("sft", "full", 78.1, 22.5),
            lower(
                training("sft>rm>ppo", "lora"),
                "the task is no open conversation",
                rule="document/principle-2",
            ),
        ),
        unknown=("data.rows", "data.tokens"),
    )


def scenario_4() -> Advice:
    """The guide's scenario 4: a chat assistant through SFT, a reward model and PPO, where evidence
    would rather take DPO.
    """
    because = (
        Reason(
            text="An assistant that people talk to: SFT, then a reward model, then RLHF",
            rule="document/scenario-4",
            source="guide, Scenario 4",
        ),
    )
    return advice(
        candidate(
            training("sft>rm>ppo", "lora"),
            "recommended",
            because,
            estimate("fits", 61.3, hours=53.5, usd=118, limit_gib=80, note="A100 80GB at $2.21/h"),
        ),
        Situation(
            answers=answers(
                task="chat_assistant",
                budget="high",
                depth="alignment",
                data_kind="preference",
                data_rows=40_000,
            ),
            hardware=Hardware(
                kind="cuda",
                origin="stated",
                gpus=(Gpu(name="A100 80GB", memory_total_bytes=80 * GIB),) * 2,
            ),
            model=QWEN_8B,
        ),
        decided_by=("document/scenario-4",),
        guide=GuideAnswer(
            composition=training("sft>rm>ppo", "lora"),
            row="Scenario 4: Building a ChatGPT-like Assistant",
        ),
        alternatives=(
            lower(
                training("sft>dpo", "lora"),
                "learns from the same pairs without a reward model; the guide does not know it",
                rule="evidence/dpo",
            ),
            lower(training("sft", "lora"), "does not ensure alignment", rule="document/sft"),
            lower(training("sft>rm>ppo", "qlora"), "the card has room for more", 40.0),
            too_big("sft>rm>ppo", "full", 312.0, 80),
        ),
    )


def remedy_alone() -> Advice:
    """Facts that change often: look them up, train nothing. The guide alone would train."""
    because = (
        Reason(
            text="Facts that change every few weeks are looked up, not learned",
            rule="evidence/volatile-facts",
            source="Ovadia et al. 2023, arXiv:2312.05934",
        ),
    )
    return advice(
        candidate(
            Composition(remedies=("rag",)),
            "recommended",
            because,
            estimate("unknown", limit_gib=None),
        ),
        Situation(answers=answers(task="qa", signals=("facts_change_often",)), hardware=CPU),
        decided_by=("evidence/volatile-facts",),
        guide=GuideAnswer(
            composition=training("sft", "lora"),
            row="Scenario 1: Customer Service Bots, Business Q&A",
        ),
        alternatives=(
            lower(
                Composition(chain=("sft",), update="lora", remedies=("rag",)),
                "only if the tone must change too",
                rule="evidence/volatile-facts",
            ),
            lower(
                training("sft", "lora"),
                "would learn facts that are soon wrong",
                rule="evidence/volatile-facts",
            ),
            lower(
                training("sft", "qlora"),
                "would learn facts that are soon wrong",
                rule="evidence/volatile-facts",
            ),
        ),
        flips=(
            Flip(
                change={"facts_change_often": False},
                to=training("sft", "lora"),
                effort="answer",
                text="if the facts did not change every few weeks",
            ),
        ),
        unknown=("budget", "data.path", "model"),
    )


def nothing_fits() -> Advice:
    """A 70B model and a card of 8 GiB: exit code 3, with what would fit."""
    reason = Reason(
        text="QLoRA needs 46.2 GiB, this GPU has 8",
        rule="fit/memory",
        source="estimate",
        needs=46.2,
        has=8,
        unit="GiB",
    )
    llama = ModelShape(
        id="meta-llama/Llama-3.3-70B-Instruct",
        origin="catalogue",
        params=70_553_706_496,
        gated=True,
    )
    nearest = candidate(
        training("sft", "qlora"),
        "too_big",
        (reason,),
        estimate("too_big", 46.2, limit_gib=8, hours=30.0, usd=9.0),
    )
    smaller = Reason(
        text="No way of training fits the hardware and the budget, so a smaller model is needed.",
        rule="base/smaller-model",
        source="estimate",
    )
    return advice(
        candidate(Composition(remedies=("smaller_model",)), "recommended", (smaller, reason),
        nearest.estimate),
        Situation(
            answers=answers(task="generation", budget="low", model=llama.id),
            hardware=Hardware(kind="cuda", origin="stated", gpus=(Gpu(name="RTX 3070",
            memory_total_bytes=8 * GIB),)),
            model=llama,
        ),
        decided_by=("document/scenario-5", "base/smaller-model"),
        guide=GuideAnswer(composition=training("sft", "qlora"),
        row="Scenario 5: Limited Budget, One GPU"),
        alternatives=(nearest, too_big("sft", "lora", 152.0, 8), too_big("sft", "full", 1120.0, 8),
        too_big("sft", "adapter", 150.0, 8)),
        flips=(
            Flip(
                change={"model": "Qwen/Qwen3-4B"},
                to=training("sft", "qlora"),
                effort="answer",
                text="if you started from Qwen/Qwen3-4B",
            ),
            Flip(
                change={"gpu": "RTX 6000 Ada 48GB"},
                to=training("sft", "qlora"),
                effort="money",
                text="if you trained on RTX 6000 Ada 48GB",
            ),
        ),
        nothing_fits=Infeasible(
            nearest=nearest,
            blame=(Reason(text="the model: meta-llama/Llama-3.3-70B-Instruct, 70.6B parameters"),
            Reason(text="the hardware: 1 x RTX 3070 with 8.0 GiB")),
            ways_out=(
                WayOut(
                    text="a smaller model, Qwen/Qwen3-4B (4.0B parameters), fits with sft+qlora",
                    change={"model": "Qwen/Qwen3-4B"}, to=training("sft", "qlora"),
                    command="advise run --task generation --budget low --model Qwen/Qwen3-4B --gpu 'RTX 3070'",
                ),
            ),
        ),
    )  # fmt: skip


def hardware_unknown() -> Advice:
    """Nobody said where it will run, nor with which model: fit, time and cost are unknown."""
    because = (
        Reason(
            text="Texts in a given style: LoRA with supervised examples",
            rule="document/scenario-6",
            source="guide, Scenario 6",
        ),
    )
    unknown = ("the card is not known", "the number of examples is not known")
    return advice(
        candidate(
            training("sft", "lora"),
            "recommended",
            because,
            estimate("unknown", limit_gib=None, unknown=unknown),
        ),
        Situation(answers=answers(task="generation"), hardware=UNKNOWN_HARDWARE),
        decided_by=("document/scenario-6",),
        guide=GuideAnswer(
            composition=training("sft", "lora"),
            row="Scenario 6: Text Generation (Writing, Summaries, Rewriting)",
        ),
        alternatives=(
            lower(training("sft", "full"), "dearer, and style needs no deep change", 130.0),
            lower(training("sft", "qlora"), "saves memory nobody said is short", 9.1),
        ),
        unknown=("gpu", "data.rows", "model"),
        certainty=CERTAIN,
    )


def injected() -> Advice:
    """Names and texts that try to break out of markup."""
    evil = "<script>alert(1)</script>[bold]&amp;\x1b[2J"
    model = ModelShape(id=f"evil/{evil}", origin="folder", params=1_000_000, note=evil)
    profile = DataProfile(
        path=f"/data/{evil}.jsonl",
        kind="paired",
        format="messages",
        mapping={evil: evil},
        rows=3,
        tokens=None,
        objectives=("sft",),
        sample={"text": evil},
    )
    return advice(
        candidate(
            training("sft", "lora"),
            "recommended",
            (Reason(text=evil, rule=evil, source=evil),),
            estimate("fits", 1.0),
        ),
        Situation(
            answers=answers(task="other", model=model.id),
            hardware=RTX_4090,
            data=profile,
            model=model,
        ),
        warnings=(evil,),
        unknown=(evil,),
        decided_by=(evil,),
        guide=GuideAnswer(composition=training("sft", "qlora"), row=evil),
        flips=(Flip(change={evil: evil}, to=training("sft", "full"), effort="data", text=evil),),
    )


EXAMPLES = {
    "scenario_5": scenario_5,
    "scenario_3": scenario_3,
    "scenario_4": scenario_4,
    "remedy_alone": remedy_alone,
    "nothing_fits": nothing_fits,
    "hardware_unknown": hardware_unknown,
}
