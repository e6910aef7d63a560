"""Benchmarks around a training: which numbers count, what a plan allows, and the real harness."""

import json
import shutil
import tomllib
from pathlib import Path

import pytest

from advisor.commands.estimate import estimate_plan
from advisor.commands.training import show_run
from advisor.extras.benchmarks import measure
from advisor.extras.benchmarks.extra import noted_of
from advisor.extras.benchmarks.measure import AskedModels, scores
from advisor.extras.benchmarks.scores import Score, compare, scores_of
from advisor.ground.errors import AdviseError, InputError, Stopped
from advisor.launch import Options, run_plan
from advisor.plan.read import read_plan
from advisor.record.files import read_record
from advisor.render.report import write_report
from advisor.render.run import summary_lines
from tests.data.conftest import jsonl, pairs
from tests.launch.conftest import PLAN, run

TASK = """\
task: own
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: "{{answer}}"
"""


@pytest.fixture
def asked(shop, monkeypatch):
    """A plan with one benchmark of its own, and what the models shall answer."""
    monkeypatch.setattr(measure, "harness_version", lambda: "0.4.13")
    monkeypatch.setenv("STAND_IN_VERSION", "0.4.13")
    (shop / "own.yaml").write_text(TASK)
    (shop / "rows.jsonl").write_text('{"question": "a", "choices": ["b", "c"], "answer": 0}\n')
    write_plan(shop)

    def scores(**right):
        monkeypatch.setenv("STAND_IN_SCORES", json.dumps(right))

    scores()
    return scores


def calls(folder):
    return (folder / "asked.txt").read_text().split("\n")[:-1]


def judged(found):
    """What the verdict says of the benchmarks."""
    return found.record.verdict.extras["benchmarks"]


def write_plan(shop, **evaluation):
    keys = {"tasks": ["own.yaml"], "max_drop": 0.02} | evaluation
    (shop / "plan.yaml").write_text(f"{PLAN}evaluation: {json.dumps(keys)}\n")


def test_the_base_is_asked_before_training_and_the_result_after_it(shop, asked, capsys, approved):
    """Each model once; a gain and a loss below max_drop end the command with 0."""
    asked(base=0.60, sft=0.59)
    found = run(output="out")
    (change,) = noted_of(found.record).changes
    assert (change.before, change.after, change.exceeds, change.rows) == (0.60, 0.59, False, 100)
    # 1 of 100 answers turned wrong: the differences have the mean -0.01 and that standard error.
    assert change.paired
    assert change.difference_stderr == pytest.approx(0.01, abs=1e-4)
    assert (found.exit_code, found.record.status, judged(found).status) == (0, "done", "kept")
    said = [line for line in capsys.readouterr().err.splitlines() if "benchmark" in line]
    approved([said, change, judged(found)])
    assert run(output="out").already_done
    assert calls(shop / "out") == ["base", "sft"]


def test_a_larger_loss_ends_with_its_own_exit_code_and_the_result_stays(shop, asked, capsys):
    """Code 6, on the next call too, with run.json; a task's own functions are named, never run."""
    (shop / "own.yaml").write_text(f"{TASK}process_results: !function own.score\n")
    asked(base=0.60, sft=0.40)
    found = run(output="out", on_end=write_report)
    assert show_run(found, as_json=True) == 6
    output = capsys.readouterr()
    assert "benchmark own.yaml: runs your functions that own.yaml names" in output.err
    document = json.loads(output.out)
    assert document["status"] == "done"
    assert document["extras"]["benchmarks"]["changes"][0]["exceeds"]
    (fault,) = document["error"]
    lost = "benchmark own lost 0.2 after training, more than max_drop 0.02"
    assert fault["what"].startswith(lost)
    assert "the result is trained and saved" in output.err
    assert list((shop / "out" / "stages" / "sft").glob("*.safetensors"))
    assert run(output="out").exit_code == 6
    assert any("Benchmarks" in line and "lost: own acc" in line for line in summary_lines(found))
    page = (shop / "out" / "report.html").read_text()
    assert "Benchmarks (lm-evaluation-harness)" in page
    assert "0.2: too much" in page


@pytest.mark.parametrize(
    ("evaluation", "after", "max_steps", "code", "limit"),
    [
        # max_drop holds for the number that was measured; the error stands beside it.
        ({"limit": 8}, 0.375, None, 6, 8),
        # 16 questions after two steps say nothing about the whole run.
        ({}, 0.1, 2, 0, 16),
    ],
)
def test_a_loss_on_few_questions_is_judged_as_that(
    shop, asked, evaluation, after, max_steps, code, limit, approved
):
    """It counts and is called what chance may explain; a trial asks few and is not failed."""
    write_plan(shop, **evaluation)
    asked(base=0.5, sft=after)
    found = run(output="out", max_steps=max_steps)
    assert (noted_of(found.record).limit, found.exit_code) == (limit, code)
    approved([judged(found), [one.text() for one in found.errors]])


def test_other_benchmarks_are_asked_of_a_finished_run_without_training_again(shop, asked):
    """Another limit or other questions ask again of both, another max_drop only compares."""
    asked(base=0.60, sft=0.50)
    trained = run(output="out").record.stages[0].finished_at
    assert run(output="out", set_values=["evaluation.max_drop=0.2"]).exit_code == 0
    assert calls(shop / "out") == ["base", "sft"]
    fewer = run("out", set_values=["evaluation.limit=10"])
    assert (fewer.record.stages[0].finished_at, noted_of(fewer.record).limit) == (trained, 10)
    assert read_plan(shop / "out" / "plan.yaml").extra_key("benchmarks", "evaluation").limit == 10
    (shop / "rows.jsonl").write_text('{"question": "z", "choices": ["b", "c"], "answer": 1}\n')
    run(output="out")
    assert calls(shop / "out") == ["base", "sft", "base sft", "base sft"]


def test_a_benchmark_that_fails_or_is_stopped_is_asked_by_the_next_call(shop, asked, monkeypatch):
    """If it fails before, nothing is left; if after, the next call asks only what is left."""
    monkeypatch.setenv("STAND_IN_SCORES", "fails")
    with pytest.raises(InputError, match=r"no such column; nothing was trained yet"):
        run(output="out")
    assert not (shop / "out").exists()
    asked(base=0.5)
    assert run(output="out").exit_code == 0
    shutil.rmtree(shop / "out" / "benchmarks" / "sft")
    monkeypatch.setenv("STAND_IN_SCORES", "stopped")
    with pytest.raises(Stopped):
        run(output="out")
    assert read_record(shop / "out").status == "stopped"
    asked(base=0.6)
    record = run(output="out").record
    assert (record.status, record.stages[0].status) == ("done", "done")
    assert calls(shop / "out") == ["base", "sft", "sft", "sft"]


def test_no_judge_asks_nothing(shop, asked, monkeypatch):
    """--no-judge needs no harness, and an estimate says that it leaves benchmarks out."""
    monkeypatch.setattr(measure, "harness_version", lambda: None)
    assert noted_of(run(output="out", judge=False).record) is None
    assert not (shop / "out" / "asked.txt").exists()
    (found,) = estimate_plan(shop / "plan.yaml", None)
    assert "the benchmarks of `evaluation` are not in these times" in found["warnings"]


def test_each_module_of_several_tasks_is_asked(shop, asked):
    """One call asks all of them on the base that they share."""
    shutil.copy(shop / "train.jsonl", shop / "hr.jsonl")
    own = "overrides: {attention: eager}"  # the stand-in trains one task in a process
    tasks = (
        "tasks:\n  - {name: legal, data: {path: train.jsonl}}\n"
        f"  - {{name: hr, data: {{path: hr.jsonl}}, {own}}}"
    )
    plan = shop / "plan.yaml"
    plan.write_text(plan.read_text().replace("data: {path: train.jsonl}", tasks))
    asked(**{"base": 0.6, "sft-legal": 0.7, "sft-hr": 0.3})
    found = run(output="out")
    assert calls(shop / "out") == ["base", "sft-legal sft-hr"]
    exceeds = {one.result: one.exceeds for one in noted_of(found.record).changes}
    assert (exceeds, judged(found).status) == ({"sft-legal": False, "sft-hr": True}, "mixed")


SFT, NO_FILE = "objective: sft", "there is no task file"


@pytest.mark.parametrize(
    ("evaluation", "stage", "said"),
    [
        ({"tasks": ["gone.yaml"]}, SFT, [NO_FILE]),
        ({"tasks": ["own.yml"]}, SFT, [NO_FILE, "did you mean 'own.yaml'?"]),
        ({"tasks": []}, SFT, ["`tasks` is an empty list", "a text such as arc_easy"]),
        ({"tasks": "arc_easy"}, SFT, ["`tasks` is 'arc_easy'", "a list that is not empty"]),
        *[({"max_drop": value}, SFT, ["max_drop"]) for value in (-0.1, 2, "much")],  # is a share
        # Results that do not write on.
        ({"limit": 8}, "objective: rm", ["scores texts"]),
        ({"limit": 8}, f"{SFT}\n    head: classes", ["sorts texts"]),
        ({"limit": 8}, f"{SFT}\n    head: seq2seq", ["not tested"]),
        ({}, SFT, ["[eval]", "pip install"]),  # the harness is missing
    ],
)
def test_what_cannot_be_asked_is_refused_with_the_way_out(
    shop, asked, monkeypatch, evaluation, stage, said
):
    """Exit code 2 before anything is written; 4 for a missing package, as everywhere."""
    if not evaluation:
        monkeypatch.setattr(measure, "harness_version", lambda: None)
    write_plan(shop, **evaluation)
    plan = shop / "plan.yaml"
    plan.write_text(plan.read_text().replace(SFT, stage))
    with pytest.raises(AdviseError) as error:
        run(output="out")
    assert (error.value.exit_code, (shop / "out").exists()) == ((2 if evaluation else 4), False)
    assert [part for part in said if part not in error.value.text()] == []


def test_the_tested_range_is_that_of_the_extra():
    """pyproject.toml names the same versions."""
    root = Path(__file__).parents[3]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    assert project["optional-dependencies"]["eval"] == ["lm-eval>=0.4.13,<0.4.14"]
    assert "lm_eval==0.4.13" in (root / "constraints-tested.txt").read_text().splitlines()


def answered(**changes):
    """What the harness returns for four questions, in its form."""
    sample = {"filter": "none", "metrics": ["acc", "acc_norm"], "acc": 1.0}
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
        "samples": {
            "own": [{**sample, "doc_id": n, "acc_norm": float(n < 3)} for n in (3, 2, 1, 0)]
        },
        **changes,
    }


PARTS = {"law": {"acc,none": 0.5}, "art": {"acc,none": 1.0}}
GROUPED = {
    "group_subtasks": {"all": ["law", "art"]}, "samples": {},
    "n-samples": {name: {"original": 9, "effective": 2} for name in PARTS},
}  # fmt: skip
SCORES = {  # what the harness returns, and the scores in it
    # With the answers in the order of the questions, and the other metrics beside it.
    "the first metric of the benchmark's own list": ({}, [
        {"metric": "acc_norm", "value": 0.75, "stderr": 0.25, "rows": 4,
         "values": (1.0, 1.0, 1.0, 0.0)}]),
    "no list": ({"configs": {}}, [{"metric": "acc"}]),
    # gsm8k has one metric under two filters.
    "filters": (
        {"results": {"own": {"exact_match,strict-match": 0.5, "exact_match,flexible-extract": 0.75}},
         "samples": {}},
        [{"metric": "exact_match (strict-match)", "values": None}]),
    # It comes from all answers together: no difference question by question.
    "perplexity": (
        {"results": {"own": {"word_perplexity,none": 20.0, "word_perplexity_stderr,none": "N/A"}},
         "samples": {"own": [{"doc_id": 0, "filter": "none", "word_perplexity": (-3.0, 1)}]},
         "higher_is_better": {"own": {"word_perplexity": False}}},
        [{"values": None, "stderr": None, "higher_is_better": False}]),
    # mmlu has a mean; a group without one, and a tag, do not.
    "a group with a mean": (
        GROUPED | {"results": PARTS | {
            "all": {"alias": "all", "acc,none": 0.75, "acc_stderr,none": 0.1}}},
        [{"benchmark": "all", "value": 0.75, "rows": 4}]),
    "a group without": (GROUPED | {"results": PARTS | {"all": {"alias": "all"}}}, [
        {"benchmark": "law"}, {"benchmark": "art"}]),
    # Nothing is taken for a score of 0.
    "no number": ({"results": {"own": {"alias": "own", "acc,none": "N/A"}}}, []),
}  # fmt: skip


@pytest.mark.parametrize(("changes", "expected"), SCORES.values(), ids=SCORES)
def test_the_number_that_counts_is_read(changes, expected):
    """Which metric, of what, and whether it is a mean of answers."""
    found = scores_of(answered(**changes))
    assert [
        {key: getattr(score, key) for key in wanted}
        for score, wanted in zip(found, expected, strict=True)
    ] == expected


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
    before, after, higher, loss, relative, exceeds, approved
):
    """Hand-made numbers."""
    change = change_of({"value": before}, {"value": after}, higher_is_better=higher)
    assert change.loss == pytest.approx(loss)
    assert (change.relative, change.exceeds) == (relative, exceeds)
    approved([change.loss_words, change.is_lost, change.is_noise])


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
    change = change_of({"value": 0.9}, {"value": 0.5}, stderr=0.01, max_drop=None)
    assert (change.exceeds, change.is_lost) == (None, True)


HARNESS_PLAN = """\
name: asked
model: {model}
data: {{path: rows.jsonl}}
stages:
  - {{name: sft, objective: sft, update: {update}, learning_rate: 0.01, max_steps: 2, micro_batch_size: 4, seq_len: 64, holdout: 0.2}}
evaluation: {{tasks: [bench/choose.yaml, bench/write.yaml, bench/read.yaml], max_drop: 0.5}}
"""
COMMON = """\
dataset_path: json
dataset_kwargs: {data_files: {test: rows.jsonl}}
test_split: test
"""
HARNESS_TASKS = {
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


@pytest.fixture
def harness(tmp_path, monkeypatch, tiny_model):
    """Writes a plan with benchmarks of choices, written answers and texts for the real harness."""
    lm_eval = pytest.importorskip("lm_eval")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    jsonl(tmp_path, pairs(20), "rows.jsonl")
    bench = tmp_path / "bench"
    bench.mkdir()
    asked = [{"q": f"Name {n}", "c": [f"number {n}", "a house"], "a": n % 2} for n in range(12)]
    jsonl(bench, asked, "rows.jsonl")
    for name, text in HARNESS_TASKS.items():
        (bench / f"{name}.yaml").write_text(f"task: {name}\n{COMMON}{text}")

    def write(update):
        (tmp_path / "plan.yaml").write_text(HARNESS_PLAN.format(model=tiny_model, update=update))
        return lm_eval

    return write


@pytest.mark.long
@pytest.mark.parametrize("update", ["lora", "full", "adapter", "prefix", "ia3"])
def test_every_kind_of_result_is_asked_by_the_real_harness(
    tmp_path, monkeypatch, tiny_model, harness, update
):
    """A second call asks nothing, and the scores are those of the harness by itself."""
    lm_eval, run = harness(update), run_plan("plan.yaml", Options(output="out"))
    found = {change.benchmark: change for change in noted_of(run.record).changes}
    assert list(found) == ["choose", "write", "read"]
    assert found["choose"].paired
    assert (found["choose"].rows, not found["read"].higher_is_better) == (12, True)
    assert found["read"].after != found["read"].before
    assert run_plan("plan.yaml", Options(output="out")).already_done

    if update != "lora":
        return
    template = noted_of(run.record).chat_template
    plan = read_plan(tmp_path / "out" / "plan.yaml")
    for name, extra in (("base", ""), ("sft", f",peft={tmp_path / 'out' / 'stages' / 'sft'}")):
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / "bench")
            alone = lm_eval.simple_evaluate(
                model="hf", model_args=f"pretrained={tiny_model},dtype=float32{extra}",
                tasks=["choose.yaml", "read.yaml"], device="cpu", batch_size=8,
                apply_chat_template=template, fewshot_as_multiturn=template,
            )["results"]  # fmt: skip
        measured = AskedModels(plan, tmp_path / "out", run.record)
        found = {
            one.benchmark: one.value
            for task, answer in measured.answers(name).items()
            for one in scores(task, answer)
        }
        assert found["choose"] == alone["choose"]["acc,none"]
        assert found["read"] == pytest.approx(alone["read"]["word_perplexity,none"], rel=1e-4)


@pytest.mark.long
def test_a_benchmark_that_the_harness_refuses_ends_before_training(tmp_path, harness):
    """A column that is not there shows only when the questions are made."""
    harness("lora")
    file = tmp_path / "bench" / "choose.yaml"
    file.write_text(file.read_text().replace("{{c}}", "{{no_such}}"))
    with pytest.raises(InputError, match=r"choose\.yaml: lm-evaluation-harness cannot run it"):
        run_plan("plan.yaml", Options(output="out"))
    assert not (tmp_path / "out" / "stages").exists()
