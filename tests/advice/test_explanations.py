"""Why, what if, how sure and what it costs: each says something of this situation, not of any; so do
what is warned of and what contradicts."""

import json
import random
import re

import pytest

from advisor import Answers
from advisor.advice.advise import with_choice
from advisor.advice.case import Case
from advisor.advice.facts import can_be_stated, stated_values
from advisor.advice.flips import MAX_SHOWN
from advisor.advice.why import GRADES
from advisor.advice.why_not import LosingOutcome
from advisor.render.answer.page import WARNING, first_screen, page_of
from advisor.render.answer.why import ASSUMED, HINTS, certainty_lines, ordered_warnings
from advisor.situation.build import situation_of
from tests.advice.public_situations import RECENT, answers_of, read_situations
from tests.advice.situations import (
    RULES,
    UNKNOWN_MACHINE,
    advice_on,
    advised,
    asked,
    random_advices,
)
from tests.conftest import scaled

SUPPORT = {
    "task": "customer_service", "data_kind": "paired", "data_rows": 5000, "budget": "low",
    "depth": "task", "gpu": "RTX 4090", "model": "Qwen/Qwen3-8B",
}  # fmt: skip


def reason(**stated):
    return advised(**{name: one for name, one in stated.items() if one is not None}).recommendation


@pytest.mark.parametrize(
    "change",
    [
        {"budget": "high", "gpu": "H200", "data_rows": 1_000_000},
        {"gpu": "RTX 4060 8GB"},
        {"data_rows": 20},
        {"data_kind": "preference"},
        {"data_kind": "raw_text", "data_rows": None, "task": "domain_expertise"},
        {"depth": "domain_knowledge", "task": "qa"},
        {"n_tasks": 12},
        {"signals": ("facts_change_often",)},
        {"signals": ("prompt_meets_quality_bar",)},
    ],
)
def test_the_first_reason_names_the_fact_that_decided(change):
    """A situation that another fact decides begins with another reason, and states own facts."""
    usual, other = reason(**SUPPORT), reason(**SUPPORT | change)
    assert str(usual.composition) != str(other.composition)
    assert usual.because[0].text != other.because[0].text
    assert usual.because[0].text.startswith(
        "You have requests with the right answer (5,000 examples)"
    )
    assert "LoRA fits in 24.0 GiB" in usual.because[0].text
    assert usual.because[0].rule == "evidence/lora-where-it-fits"  # not what any answer would say
    for one in (usual, other):  # nor on the first screen, where lines are short
        named = [fact.text for fact in one.because[0].facts]
        short = (one.because[0].short or one.because[0].text).lower()
        assert any(text and text.lower() in short for text in named), short


def test_what_ifs_are_few_and_of_this_person():
    """Nobody is told what other data, a teacher or a better prompt would lead to."""
    chosen = random.Random(7).sample(read_situations(RECENT)[1::2], scaled(16))
    for public in chosen:
        known = Answers.from_dict(answers_of(public))
        flips = advice_on(situation_of(known, probed=UNKNOWN_MACHINE), flips=True).flips
        changed = {name for flip in flips for name in flip.change}
        assert len(flips) <= MAX_SHOWN
        assert len({str(flip.to) for flip in flips}) == len(flips)
        assert "facts_change_often" not in changed
        if known.value("data_kind"):
            assert "data.kind" not in changed
        if not known.value("teacher"):
            assert "teacher" not in changed


@pytest.mark.parametrize(
    ("stated", "doubt"),
    [
        ({}, None),
        ({"budget": None, "gpu": None}, "how much it may cost"),
        ({"task": "other", "gpu": None}, "no rule is about your task"),
        ({"model": "meta-llama/Llama-3.1-70B-Instruct", "gpu": "RTX 4060 8GB"}, "another tool"),
        ({"task": "qa", "data_kind": "raw_text", "data_rows": None, "depth": "domain_knowledge",
          "signals": ["facts_change_often", "rag_tried"]}, "you have tried looking things up"),
        ({"model": "gpt-4o"}, "can be done in other ways"),
        ({"model": "Llama 3"}, "nothing is known of the model"),
        ({"model": "google/flan-t5-large"}, "experts disagree here"),
    ],
)  # fmt: skip
def test_what_could_change_the_answer_makes_it_weak(stated, doubt):
    """One doubt is enough; a teacher nobody spoke of is none."""
    known = {name: one for name, one in (SUPPORT | stated).items() if one is not None}
    found = advice_on(
        situation_of(Answers.from_dict(_keyed(known)), probed=UNKNOWN_MACHINE), flips=True
    )
    assert found.certainty.strength == ("weak" if doubt else "strong"), found.certainty
    assert not doubt or doubt in " ".join(found.certainty.doubts)


def _keyed(known):
    dotted = {fact.id: fact.answer for fact in RULES.facts.values() if fact.answer}
    document = {}
    for name, value in known.items():
        *folder, last = dotted.get(name, name).split(".")
        (document.setdefault(folder[0], {}) if folder else document)[last] = value
    return document


@pytest.mark.parametrize(
    ("stated", "assumed"),
    [
        ({"data_tokens": 1_500_000}, []),
        ({}, ["tokens a row"]),
        ({"data_rows": None}, ["rows", "tokens a row"]),
        ({"data_rows": None, "gpu": None}, ["rows", "tokens a row", "gpu"]),
    ],
)
def test_a_cost_that_nobody_can_know_says_what_it_assumes(stated, assumed):
    """Time and cost are there, each assumption has its source, and no verdict is made of them."""
    known = {name: one for name, one in (SUPPORT | stated).items() if one is not None}
    advice = advice_on(
        situation_of(Answers.from_dict(_keyed(known)), probed=UNKNOWN_MACHINE), flips=False
    )
    estimate = advice.recommendation.estimate
    assert [one.what for one in estimate.assumed] == assumed
    assert None not in (estimate.duration_s, estimate.cost_usd)
    assert all(one.source for one in estimate.assumed)
    assert (estimate.fits == "unknown") == ("gpu" in assumed)
    assert ("assumed: " in first_screen(advice).labelled["Time"][0].text) == bool(assumed)


def test_a_warning_that_changes_what_one_does_is_never_folded():
    """Hints and assumptions may be left to the whole answer, nothing else."""
    advice = advised(
        task="chat_assistant", data_kind="paired", data_rows=80, depth="style", gpu="M3 Max",
        model="Qwen/Qwen3-30B-A3B", signals=("teacher_available",),
    )  # fmt: skip
    told = [one for one in ordered_warnings(advice) if not HINTS.search(one)]
    serious = [one for one in told if not ASSUMED.search(one)]
    assert len(serious) > 1
    assert len(first_screen(advice).labelled[WARNING]) >= len(serious)


SUPPORT_ON_8B = {
    "task": "customer_service", "budget": "low", "gpu": "RTX 4090", "model": "Qwen/Qwen3-8B",
    "data_kind": "paired", "data_rows": 1500,
}  # fmt: skip
NOTHING = {**dict.fromkeys(SUPPORT_ON_8B), "task": "other"}


@pytest.mark.parametrize(("model", "mixes"), [("Qwen/Qwen3-0.6B", True), ("Qwen/Qwen3-8B", False)])
def test_what_the_plan_does_is_not_advised(model, mixes):
    """General questions are asked for only where the plan mixes none in."""
    keys = {"task": "chat_assistant", "depth": "style", "data_kind": "paired", "data_rows": 5000}
    advice = advised(**keys, model=model, gpu="H100")
    assert ("replay" in advice.recommendation.stages[0].reasons) == mixes
    assert any("one-style-everywhere" in one for one in advice.warnings) != mixes


@pytest.mark.parametrize(("usd", "keeps"), [(0.01, False), (1.0, True), (20.0, False)])
def test_an_assumed_cost_may_pass_a_limit(usd, keeps):
    """Rows of unknown length are assumed to be usual ones: above a limit that is said beside it,
    with the number of rows that would keep it, where enough are left.
    """
    keys = {"task": "qa", "data_kind": "paired", "data_rows": 500_000, "budget_usd": usd}
    keys |= {"model": "Qwen/Qwen3-0.6B", "gpu": "RTX 4090"}
    page = repr(page_of(advised(**keys)))
    assert ("above your limit of $" in page) == (usd < 20)
    fewer = re.search(r"about ([\d,]+) rows, read as often, would keep it", page)
    assert bool(fewer) is keeps
    if fewer:
        keys["data_rows"] = int(fewer[1].replace(",", ""))
        assert "above your limit" not in repr(page_of(advised(**keys)))


@pytest.mark.parametrize("gpu", ["A100 80GB", "H200", "B200"])
def test_every_weight_is_told_in_the_form_that_needs_least(gpu):
    """The number does not depend on how much room there is; its optimizer is named."""
    keys = {"task": "qa", "data_kind": "paired", "data_rows": 5000, "model": "Qwen/Qwen3-8B"}
    advice = advised(**keys, gpu=gpu)
    (full,) = (one for one in advice.alternatives if str(one.composition) == "sft+full")
    lean = full.estimate.leanest
    assert (round(lean.need_bytes / 2**30, 1), lean.optimizer) == (66.3, "16-bit AdamW")
    more = "" if gpu == "A100 80GB" else " or more"
    assert f"66.3 GiB{more} with 16-bit AdamW" in repr(page_of(advice).sections)


def test_a_smaller_scheme_would_win_if_the_winner_did_not_fit():
    """The memory left is the difference of the shown numbers; what is too big shows both."""
    advice = advised(**SUPPORT_ON_8B)
    chosen = advice.recommendation
    assert str(chosen.composition) == "sft+lora"
    assert advice.decided_by[-1] == "evidence/lora-where-it-fits"
    need = chosen.estimate.memory.need_bytes / 2**30
    assert 15.3 < need < 21  # 8.2 billion weights of 2 bytes, and what a few rows take
    found = {str(one.composition): one.because[0] for one in advice.alternatives}
    reason, full = found["sft+qlora"], found["sft+full"]
    said = r"QLoRA would win if LoRA did not fit; here LoRA fits with (\d+\.\d) GiB to spare\."
    assert float(re.fullmatch(said, reason.text)[1]) == pytest.approx(24.0 - need, abs=0.11)
    assert reason.rule == "evidence/module-on-4-bit"
    told = r"full fine-tuning needs \d+\.\d GiB \(16-bit AdamW\), this GPU has 24\.0 GiB"
    assert re.fullmatch(told, full.text)
    assert None not in (full.needs, full.has)


@pytest.mark.parametrize(
    ("stated", "composition", "text"),
    [
        ({}, "prompting", "A good prompt would win if a prompt alone gave good enough answers; you"
         " have not said so."),
        # Not: if you asked for another task.
        ({}, "sft+prefix", "Ranks below LoRA: LoRA comes near full performance for very little memory,"
         " and is the most widely adopted method. It needs 21.8 GiB, LoRA 18.1 GiB."),
        # Where a module holds the data, with how many they are.
        ({"model": "HuggingFaceTB/SmolLM2-135M-Instruct"}, "sft+full", "Ranks below LoRA: up to about"
         " a hundred thousand examples, LoRA on every linear layer equals full fine-tuning for a"
         " fraction of the memory and disk (you have 1,500 examples)."),
        ({}, "sft+ia3", "None of the rules in use recommends it here."),
        ({"budget": "medium", "priority": "cost", "gpu": "unknown", "data_kind": "preference"},
         "sft+lora", "Supervised fine-tuning would win if you had requests with the right answer; you"
         " have pairs of a better and a worse answer."),
        # Where nothing is trained, neither 'a prompt comes first' nor what the other step concluded.
        ({**NOTHING, "data_kind": "none", "gpu": "RTX 4090",
          "signals": ("domain_covered_by_base_model",)}, "sft+lora", "Ranks below a good prompt: there"
         " is nothing to train on yet: write a prompt, keep the answers, and correct them into"
         " examples."),
        # Numbers of a suggested model may stand beside a fit that is not known.
        ({**NOTHING, "budget": "low", "gpu": "RTX 4090"}, "sft+lora", "LoRA would win if it fitted;"
         " whether LoRA fits is not known, since you named no model and did not say what your data"
         " are. It needs 18.8 GiB, QLoRA 14.0 GiB."),
        ({"task": "code"}, "cpt>sft+lora", "Continued pre-training reads plain text by the hundred"
         " million tokens; you have none."),
    ],
)  # fmt: skip
def test_a_change_is_named_that_a_person_can_make(stated, composition, text):
    """An answer before other data, two conditions at most, and what is so instead."""
    given = {
        name: value for name, value in {**SUPPORT_ON_8B, **stated}.items() if value is not None
    }
    assert [
        one.because[0].text
        for one in advised(**given).alternatives
        if str(one.composition).split("@")[0] == composition
    ] == [text]


@pytest.mark.parametrize("batch", range(6))
def test_every_change_that_is_named_would_do_it(batch, monkeypatch):
    """Deciding again with the change, and with what things then cost, leads to the outcome."""
    told = []

    def remember(question, way):
        told.append((question, way))
        return would_come_first(question, way)

    would_come_first = LosingOutcome.would_come_first
    monkeypatch.setattr(LosingOutcome, "would_come_first", remember)
    checked = 0
    for seed, advice in random_advices(range(batch, scaled(90), 6), None, flips=False):
        case = Case.build(advice.situation, RULES)
        for question, way in told:
            if any(RULES.facts[name].instance_of for name in way.change):
                continue  # a fit is no answer: what it costs cannot be changed
            decision = case.with_answers(way.change).decision
            assert decision.facts[question.table.concludes] == question.outcome, (seed, way)
            checked += 1
        told.clear()
    assert checked > scaled(10)


def signal(*names):
    return tuple(part for name in names for part in ("--signal", name))


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (signal("prompt_meets_quality_bar", "base_model_never_succeeds"),
         "prompt_meets_quality_bar is yes (--signal) and base_model_never_succeeds is yes (--signal)"),
        (signal("prompt_meets_quality_bar", "prompting_tried=no"),
         "prompt_meets_quality_bar is yes (--signal) and prompting_tried is no (--signal)"),
        (signal("teacher_logs_available", "teacher_available=no"),
         "teacher_logs_available is yes (--signal) and teacher_available is no (--signal)"),
        (("--teacher", "none", *signal("teacher_logs_available")),
         "teacher_logs_available is yes (--signal) and teacher is none (--teacher)"),
        (("--teacher", "none", *signal("teacher_available")),
         "teacher is none (--teacher) and teacher_available is yes (--signal)"),
        (("--teacher", "texts", *signal("teacher_available=no")),
         "teacher is texts (--teacher) and teacher_available is no (--signal)"),
        (("--data-kind", "none", "--data-rows", 5000),
         "data_kind is none (--data-kind) and data_rows is 5000 (--data-rows)"),
        (("--data-kind", "none", "--data-tokens", 5000),
         "data_kind is none (--data-kind) and data_tokens is 5000 (--data-tokens)"),
        (("--data-kind", "paired", "--data-rows", 5000, "--data-tokens", 0),
         "data_rows is 5000 (--data-rows) and data_tokens is 0 (--data-tokens)"),
        (("--data-kind", "prompts_with_verifier", *signal("verifiable_rewards_available=no")),
         "data_kind is prompts_with_verifier (--data-kind) and verifiable_rewards_available is no"),
        (signal("base_model_untuned=no", "instruct_model_start=no"),
         "base_model_untuned is no (--signal) and instruct_model_start is no (--signal)"),
        (("--data-kind", "paired", "--data-rows", 5000, "--data-tokens", 60),
         "data_rows is 5000 (--data-rows) and data_tokens is 60 (--data-tokens)"),
        (signal("rag_tried", "rag_tried=no"), "--signal rag_tried: is given twice"),
    ],
)  # fmt: skip
def test_what_cannot_be_stated_together_is_refused(call, flags, named):
    """With both sides, where they come from, and why."""
    code, out, err = call("--json", "--task", "qa", "--gpu", "unknown", *flags)
    assert (code, bool(json.loads(out)["error"]), named in err) == (2, True, True)
    assert "take one of them back" in err


# Several faults of one answer, as an answers file and as flags, and what each is named by.
FAULTS = {
    "budget": ("budget: {usd: -3}", ("--budget", "usd=-3"), "is -3"),
    "gpu": ("gpu: {name: RTX 4090, count: 0}", ("--gpu", "RTX 4090", "--gpus", 0), "is 0"),
    "unknown gpu": (None, ("--gpu", "RTX 9090"), "unknown GPU 'RTX 9090'"),
    "data": ("data: {path: none.jsonl}", ("--data", "none.jsonl"), "none.jsonl: no such file"),
    "signals": ("signals: {prompt_meets_quality_bar: true, prompting_tried: false}",
                signal("prompt_meets_quality_bar", "prompting_tried=no"), "this cannot be"),
    "priority": ("priority: speeed", ("--priority", "speeed"), "did you mean 'speed'"),
    "tasks": ("tasks: {a: a.jsonl, b: b.jsonl}\nn_tasks: 5",
              ("--tasks", "a=a.jsonl", "--tasks", "b=b.jsonl", "--n-tasks", 5),
              "n_tasks is 5, but 2 tasks are named"),
    "task": ("task: qua", ("--task", "qua"), "did you mean 'qa'"),
    "model": ("model: [a, b]", ("--model", ""), "model"),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(scaled(12)))
def test_faults_of_every_kind_come_together(call, tmp_path, seed):
    """Of values, machine, files and what contradicts what; half in a file, half as flags."""
    draw = random.Random(seed)
    chosen = draw.sample(sorted(FAULTS), draw.randint(2, 5))
    if {"gpu", "unknown gpu"} <= {*chosen}:
        chosen.remove("gpu")  # one machine
    if {"data", "tasks"} <= {*chosen}:
        chosen.remove("data")  # one kind of data
    in_file = [name for name in chosen if FAULTS[name][0] is not None and draw.random() < 0.5]
    file = tmp_path / "answers.yaml"
    file.write_text("".join(f"{FAULTS[name][0]}\n" for name in in_file) or "depth: null\n")
    flags = [part for name in chosen if name not in in_file for part in FAULTS[name][1]]
    code, out, err = call("--json", "--answers", file, *flags)
    assert (code, bool(json.loads(out)["error"])) == (2, True)
    for name in chosen:
        assert FAULTS[name][2] in err, name


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("gpu: unknown\ndata:\n  kind: none\n  rows: 30\nsignals: []\n",
         ["data_kind is none ({file}:4:9) and data_rows is 30 ({file}:5:9)"]),
        ("signals: [instruct_model_start, base_model_untuned]\n",
         ["instruct_model_start is yes ({file}:2:11)"]),
        ("signals: [rag_tried, {prompting_tried: false}]\n", ["{file}:2:22: `signals[1]` is a map"]),
    ],
)  # fmt: skip
def test_a_contradiction_names_line_and_column(call, tmp_path, text, said):
    """Of an answers file, whether its signals are a map or a list."""
    file = tmp_path / "answers.yaml"
    file.write_text(f"task: qa\n{text}")
    code, _, err = call("--json", "--answers", file)
    assert (code, all(words.format(file=file) in err for words in said)) == (2, True)


def test_a_no_contradicts_no_other_no(call):
    """Except about what must be one of two."""
    signals = [fact.id for fact in RULES.facts.values() if fact.signal]
    denied = [f"{name}=no" for name in signals if name != "instruct_model_start"]
    assert call("--json", "--task", "qa", "--gpu", "unknown", *signal(*denied))[0] == 0


def test_no_change_is_promised_that_contradicts_what_was_stated(situation_files):
    """Whoever says that a teacher's answers are stored is not told what would be without one."""
    looked_at, by_answer = 0, {fact.answer: fact.id for fact in RULES.facts.values() if fact.answer}
    for seed, advice in random_advices(range(scaled(60)), situation_files):
        said = stated_values(advice.situation.answers)
        assert can_be_stated(RULES, said), seed
        for flip in advice.flips:
            change = {by_answer.get(key, key): value for key, value in flip.change.items()}
            assert can_be_stated(RULES, {**said, **change}), (seed, flip.change)
            looked_at += 1
    assert looked_at > scaled(30)


FILE = """
overlay: acme
sources: {{us: {{title: our handbook}}}}
tables:
  {table}:
    - {{id: acme/heard, kind: warn, when: {{}}, then: {{say: this is heard}}, because: a test, sources: [us]}}
"""


@pytest.mark.parametrize("table", RULES.tables.values(), ids=lambda table: table.id)
def test_a_warning_of_a_table_is_shown_or_refused(call, tmp_path, table):
    """A rule of one's own warns once, with its id; a table asked for each scheme refuses it."""
    file = tmp_path / "own.yaml"
    file.write_text(FILE.format(table=table.id))
    code, out, err = call("--json", "--task", "qa", "--gpu", "unknown", "--rules", file)
    if table.per:
        assert (code, f"table '{table.id}' rules schemes out" in err) == (2, True)
    else:
        assert (code, json.loads(out)["warnings"].count("this is heard (acme/heard)")) == (0, 1)


@pytest.mark.parametrize(
    ("task", "kind", "rows", "said"),
    [
        ("classification", "raw_text", 50, "no categories"),
        ("tool_use", "raw_text", 300, "no calls"),
        ("chat_assistant", "raw_text", 300, "no replies"),
        ("generation", "preference", 300, "too few"),
    ],
)
def test_wrong_data_are_the_first_warning(call, task, kind, rows, said):
    """Unsuited or too few data come before every other warning, and each warning once."""
    _, out, err = call(
        "--json", "--task", task, "--data-kind", kind, "--data-rows", rows, "--gpu", "RTX 4090"
    )
    warnings = json.loads(out)["warnings"]
    assert said in warnings[0]
    assert all(err.count(f"warning: {warning}") == 1 for warning in warnings)


def test_a_guess_is_told_once(call):
    """A model of which the size alone is known is guessed, and that is one warning."""
    code, out, _ = call("--json", "--task", "qa", "--model-params-b", "7", "--gpu", "RTX 4090")
    assert (code, sum("shape guessed" in text for text in json.loads(out)["warnings"])) == (0, 1)


TRAINS = ("--task", "qa", "--data-kind", "paired", "--data-rows", 500, "--model", "Qwen/Qwen3-0.6B")


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (("--gpu", "none"), True),
        *((("--gpu", gpu), False) for gpu in ("RTX 4090", "T4", "unknown", "M3 Max")),
        # Needs no GPU.
        (("--gpu", "none", "--signal", "prompt_meets_quality_bar"), False),
    ],
)
def test_free_gpus_are_named_where_a_processor_would_train_alone(call, more, named):
    """Not where a GPU is there or none is known of, nor where nothing is trained."""
    code, out, _ = call("--json", *TRAINS, *more)
    said = " ".join(json.loads(out)["warnings"])
    assert code == 0
    assert (("Kaggle (2 x T4" if named else "cost nothing") in said) is named
    # NVIDIA's and the processor are what was tried.
    assert ("never run on an A" in said) is ("M3 Max" in more)


@pytest.mark.parametrize(("more", "is_guessed"), [((), True), (("--gpu", "none"), False)])
def test_a_machine_nobody_named_is_said_to_be_the_one_meant(call, monkeypatch, more, is_guessed):
    """Where no GPU was stated and none is found, the answer is for a processor by a guess."""
    processor = asked(gpu="none").hardware
    monkeypatch.setattr("advisor.situation.build.probe", lambda: processor)
    code, out, _ = call("--json", *TRAINS, *more)
    said = "no GPU was stated, and none was found here" in " ".join(json.loads(out)["warnings"])
    assert (code, said) == (0, is_guessed)


def test_evidence_is_that_of_the_weakest_rule_and_doubts_make_it_weak(situation_files):
    """Over random situations: the two scales say what their parts say."""
    strengths = set()
    for _, advice in random_advices(range(scaled(60)), situation_files):
        found = advice.certainty
        rules = [RULES.rule(rule_id) for rule_id in advice.decided_by]
        words = [GRADES[rule.confidence][0] for rule in rules]
        assert found.evidence == max(words, key=["high", "medium", "low"].index, default="low")
        assert (found.strength == "weak") == bool(found.doubts)
        if found.conflicts:
            assert "experts disagree here" in found.doubts
        strengths.add(found.strength)
    assert strengths == {"weak", "strong"}


def test_experts_who_disagree_are_named(approved):
    """The other side with its source, and the recommendation is weak for it alone."""
    preference = {
        "task": "customer_service", "data_kind": "preference", "data_rows": 30_000, "budget": "high",
        "depth": "style", "serve_with": "vllm", "priority": "quality", "teacher": "none",
        "prompting_tried": True, "instruct_model_start": True, "model": "Qwen/Qwen3-8B",
    }  # fmt: skip
    advice = advised(**preference)
    found = advice.certainty
    (short,) = first_screen(advice).labelled["Unsure"]
    approved([found.strength, short.text, found.conflicts, certainty_lines(found)])


def test_without_a_training_nothing_is_said_of_how_to_train():
    """Neither by the steps that decide how, nor of the model or the run; whoever trains all the same
    is told, then.
    """
    stated = {"task": "customer_service", "data_kind": "paired", "data_rows": 30, "depth": "style",
              "model": "openai/gpt-oss-20b", "gpu": "unknown", "teacher": "texts",
              "signals": ("prompt_meets_quality_bar",)}  # fmt: skip
    asked_for = advised(**stated)
    assert not asked_for.recommendation.composition.chain
    how = re.compile("written out in 16 bit|a style that all rows have|terms of the larger model")
    assert not [text for text in asked_for.warnings if how.search(text)]
    trained = next(one for one in asked_for.alternatives if one.composition.chain)
    told = with_choice(asked_for, trained, RULES).warnings
    assert len({found[0] for text in told if (found := how.search(text))}) == 3
