"""Scores of lm-evaluation-harness: which number of its answer counts, and that every kind of result
can be asked, with the real harness.
"""

import json

import pytest

from advisor.extras.benchmarks.extra import noted_of
from advisor.extras.benchmarks.measure import AskedModels, scores
from advisor.extras.benchmarks.scores import Score, compare, scores_of
from advisor.ground.errors import InputError
from advisor.launch import Options, run_plan
from advisor.plan.read import read_plan


def answered(**changes):
    """What the harness returns for four questions, in its form."""
    metrics = {"filter": "none", "metrics": ["acc", "acc_norm"], "acc": 1.0}
    samples = [
        {"doc_id": 3 - number, "acc_norm": value, **metrics}
        for number, value in enumerate([0.0, 1.0, 1.0, 1.0])
    ]
    row = {
        "alias": "own", "acc,none": 1.0, "acc_stderr,none": 0.0, "acc_norm,none": 0.75,
        "acc_norm_stderr,none": 0.25,
    }  # fmt: skip
    return {
        "results": {"own": row},
        "configs": {"own": {"metric_list": [{"metric": "acc_norm"}, {"metric": "acc"}]}},
        "group_subtasks": {"own": []},
        "higher_is_better": {"own": {"acc": True, "acc_norm": True}},
        "n-samples": {"own": {"original": 60, "effective": 4}},
        "samples": {"own": samples},
        **changes,
    }


FILTERED = {"exact_match,strict-match": 0.5, "exact_match,flexible-extract": 0.75}
PERPLEXITY = {
    "results": {"own": {"word_perplexity,none": 20.0, "word_perplexity_stderr,none": "N/A"}},
    "samples": {"own": [{"doc_id": 0, "filter": "none", "word_perplexity": (-3.0, 1)}]},
    "higher_is_better": {"own": {"word_perplexity": False}},
}
PARTS = {"law": {"acc,none": 0.5}, "art": {"acc,none": 1.0}}
GROUPED = {
    "group_subtasks": {"all": ["law", "art"]}, "samples": {},
    "n-samples": {name: {"original": 9, "effective": 2} for name in PARTS},
}  # fmt: skip
MEAN = {"alias": "all", "acc,none": 0.75, "acc_stderr,none": 0.1}
SCORES = {  # what the harness returns, and the scores in it
    # With the answers in the order of the questions, and the other metrics beside it.
    "the first metric of the benchmark's own list": ({}, [
        {"metric": "acc_norm", "value": 0.75, "stderr": 0.25, "rows": 4,
         "values": (1.0, 1.0, 1.0, 0.0)}]),
    "no list": ({"configs": {}}, [{"metric": "acc"}]),
    # gsm8k has one metric under two filters.
    "filters": ({"results": {"own": FILTERED}, "samples": {}}, [
        {"metric": "exact_match (strict-match)", "values": None}]),
    # It comes from all answers together: no difference question by question.
    "perplexity": (PERPLEXITY, [{"values": None, "stderr": None, "higher_is_better": False}]),
    # mmlu has a mean; a group without one, and a tag, do not.
    "a group with a mean": (GROUPED | {"results": PARTS | {"all": MEAN}}, [
        {"benchmark": "all", "value": 0.75, "rows": 4}]),
    "a group without": (GROUPED | {"results": PARTS | {"all": {"alias": "all"}}}, [
        {"benchmark": "law"}, {"benchmark": "art"}]),
    # Nothing is taken for a score of 0.
    "no number": ({"results": {"own": {"alias": "own", "acc,none": "N/A"}}}, []),
}  # fmt: skip


@pytest.mark.parametrize("name", SCORES)
def test_the_number_that_counts_is_read(name):
    """Which metric, of what, and whether it is a mean of answers."""
    changes, expected = SCORES[name]
    found = scores_of(answered(**changes))
    assert [
        {key: getattr(score, key) for key in wanted}
        for score, wanted in zip(found, expected, strict=True)
    ] == expected


# --------------------------------------------------------------------------- before and after


def change_of(before, after, *, max_drop=0.02, **both):
    """The comparison of two scores."""
    scores = [[Score(benchmark="own", metric="m", **one, **both)] for one in (before, after)]
    (change,) = compare(*scores, result="sft", max_drop=max_drop)
    return change


@pytest.mark.parametrize(
    ("before", "after", "higher", "loss", "relative", "exceeds"),
    [
        (0.52, 0.50, True, 0.02, False, False),  # two points, and no more
        (0.52, 0.49, True, 0.03, False, True),
        (0.50, 0.60, True, -0.10, False, False),
        (20.0, 20.4, False, 0.02, True, False),  # perplexity: 2 % more
        (20.0, 21.0, False, 0.05, True, True),
        (0.80, 0.90, False, 0.125, True, True),  # bits per byte: lower is better, though below 1
        (40.0, 39.0, True, 0.025, True, True),  # BLEU from 0 to 100
    ],
)
def test_a_loss_is_in_points_of_a_score_up_to_1_and_else_a_share(
    before, after, higher, loss, relative, exceeds
):
    """Hand-made numbers."""
    change = change_of({"value": before}, {"value": after}, higher_is_better=higher)
    assert change.loss == pytest.approx(loss)
    assert (change.relative, change.exceeds) == (relative, exceeds)


def test_the_error_of_a_difference_is_that_of_pairs_where_there_are_any():
    """Four questions, one of which turned wrong: differences 0, 0, 0, -1 have the mean -0.25 and the
    standard deviation 0.5, so that the standard error is 0.25. Of unpaired scores the squares of
    both errors are added: 0.3 and 0.4 give 0.5. Without a limit nothing exceeds it.
    """
    before, after = {"value": 1.0, "stderr": 0.3}, {"value": 0.75, "stderr": 0.4}
    pairs = change_of(
        before | {"values": (1.0, 1.0, 1.0, 1.0)}, after | {"values": (1.0, 1.0, 1.0, 0.0)}
    )
    assert (pairs.paired, pairs.difference_stderr) == (True, pytest.approx(0.25))
    assert pairs.is_noise
    alone = change_of(before, after)
    assert (alone.paired, alone.difference_stderr) == (False, pytest.approx(0.5))
    change = change_of(
        {"value": 0.9, "stderr": 0.01}, {"value": 0.5, "stderr": 0.01}, max_drop=None
    )
    assert (change.exceeds, change.is_lost) == (None, True)


# --------------------------------------------------------------------------- the real harness

PLAN = """\
name: asked
model: {model}
data: {{path: rows.jsonl}}
stages:
  - {{name: sft, objective: sft, update: {update}, learning_rate: 0.01, max_steps: 2, micro_batch_size: 4, seq_len: 64, holdout: 0.2}}
evaluation: {{tasks: [bench/choose.yaml, bench/write.yaml, bench/read.yaml], max_drop: {max_drop}}}
"""
COMMON = """\
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
"""
TASKS = {
    "choose": 'output_type: multiple_choice\ndoc_to_text: "{{q}}"\ndoc_to_choice: "{{c}}"\ndoc_to_target: "{{a}}"\n',
    "write": (
        'output_type: generate_until\ndoc_to_text: "{{q}}"\ndoc_to_target: "{{c[0]}}"\n'
        'generation_kwargs: {until: ["."], max_gen_toks: 4}\nmetric_list: [{metric: exact_match}]\n'
    ),
    "read": (
        'output_type: loglikelihood_rolling\ndoc_to_text: ""\ndoc_to_target: "{{q}}"\n'
        "metric_list: [{metric: word_perplexity}]\n"
    ),
}


def write_all(folder, model, update, *, max_drop=0.5):
    """A plan with three benchmarks of its own: choices, written answers and read texts."""
    rows = [{"question": f"What is {n}?", "answer": f"It is number {n}."} for n in range(20)]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    bench = folder / "bench"
    bench.mkdir()
    asked = [{"q": f"Name {n}", "c": [f"number {n}", "a house"], "a": n % 2} for n in range(12)]
    (bench / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    for name, text in TASKS.items():
        (bench / f"{name}.yaml").write_text(f"task: {name}\n{COMMON}{text}")
    (folder / "plan.yaml").write_text(PLAN.format(model=model, update=update, max_drop=max_drop))


@pytest.mark.long
@pytest.mark.parametrize("update", ["lora", "full", "adapter", "prefix", "ia3"])
def test_every_kind_of_result_is_asked_by_the_real_harness(
    tmp_path, monkeypatch, tiny_model, update
):
    """A second call asks nothing, and the scores are those of the harness by itself."""
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_all(tmp_path, tiny_model, update)
    run = run_plan("plan.yaml", Options(output="out"))
    found = {change.benchmark: change for change in noted_of(run.record).changes}
    assert list(found) == ["choose", "write", "read"]
    assert found["choose"].paired
    assert found["choose"].rows == 12
    assert not found["read"].higher_is_better
    assert found["read"].after != found["read"].before
    assert run_plan("plan.yaml", Options(output="out")).already_done

    if update != "lora":
        return
    template = noted_of(run.record).chat_template
    plan = read_plan(tmp_path / "out" / "plan.yaml")
    for name, extra in (("base", ""), ("sft", f",peft={tmp_path / 'out' / 'stages' / 'sft'}")):
        monkeypatch.chdir(tmp_path / "bench")
        alone = lm_eval.simple_evaluate(
            model="hf",
            model_args=f"pretrained={tiny_model},dtype=float32{extra}",
            tasks=["choose.yaml", "read.yaml"],
            device="cpu",
            batch_size=8,
            apply_chat_template=template,
            fewshot_as_multiturn=template,
        )["results"]
        monkeypatch.chdir(tmp_path)
        measured = AskedModels(plan, tmp_path / "out", run.record)
        found = {
            one.benchmark: one.value
            for task, answer in measured.answers(name).items()
            for one in scores(task, answer)
        }
        assert found["choose"] == alone["choose"]["acc,none"]
        assert found["read"] == pytest.approx(alone["read"]["word_perplexity,none"], rel=1e-4)


@pytest.mark.long
def test_a_benchmark_that_the_harness_refuses_ends_before_training(
    tmp_path, monkeypatch, tiny_model
):
    """A column that is not there shows only when the questions are made."""
    pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    write_all(tmp_path, tiny_model, "lora")
    file = tmp_path / "bench" / "choose.yaml"
    file.write_text(file.read_text().replace("{{c}}", "{{no_such}}"))
    with pytest.raises(InputError, match=r"choose\.yaml: lm-evaluation-harness cannot run it"):
        run_plan("plan.yaml", Options(output="out"))
    assert not (tmp_path / "out" / "stages").exists()
