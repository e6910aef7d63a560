"""Results of runs in use: one base for all, switching, talking, merging, benchmarks; and the demo's model."""

import io
import json
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

import shutil
import sys
from types import SimpleNamespace

from msgspec.structs import replace
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from advisor.ground.errors import InputError
from advisor.record.files import newest_run
from tests.trainers.ppo.conftest import save_module
from trainers.start import loading
from trainers.tools import chat, harness
from trainers.tools.chat import ChatSession
from trainers.tools.chat import main as chat_main
from trainers.tools.merge import export
from trainers.tools.results import BASE, load_result, load_results, record_of, results_of

CPU = torch.device("cpu")


def lora_run(
    folder, tiny_model, tasks, *, finished_at="2026-11-25T10:00:00Z", update="lora"
) -> Path:
    """A run folder with a LoRA of random weights, by seed, for each task; others have no weights."""
    samples = [
        {"prompt": "Where is my parcel?", "expected": "We look."},
        {"prompt": "hello", "expected": "good morning"},
    ]
    folder.mkdir(parents=True, exist_ok=True)
    for task, seed in tasks.items() if update == "lora" else ():
        torch.manual_seed(seed)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config)
        for saved in (model, AutoTokenizer.from_pretrained(tiny_model)):
            saved.save_pretrained(folder / "stages" / f"sft-{task}")
    stages = [
        {
            "name": f"sft-{task}", "task": task, "objective": "sft", "update": update,
            "quantization": None, "status": "done", "folder": f"stages/sft-{task}",
            "evaluation": {"samples": samples},
        }
        for task in tasks
    ]  # fmt: skip
    record = {
        "schema_version": 1, "status": "done", "model": str(tiny_model), "stages": stages,
        "resolved": {}, "finished_at": finished_at, "hardware": {"kind": "cpu"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    (folder / "plan.yaml").write_text(plan_of(tiny_model, update, tasks))
    return folder


def plan_of(model, update="lora", tasks=(), *, more="") -> str:
    """The plan in a run folder."""
    each = ", ".join(f"{{name: {task}, data: {{path: gone.jsonl}}}}" for task in tasks)
    data = f"tasks: [{each}]" if tasks else "data: {path: gone.jsonl}"
    return (
        f"name: x\nmodel: {model}\n{data}\n{more}\n"
        f"stages: [{{name: sft, objective: sft, update: {update}, learning_rate: 1e-4}}]\n"
    )


@pytest.fixture(scope="module")
def run(tmp_path_factory, tiny_model):
    return lora_run(tmp_path_factory.mktemp("run"), tiny_model, {"legal": 1, "hr": 2})


def logits(model, tokenizer):
    ids = tokenizer("Where is my parcel?", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return model(input_ids=ids).logits


def test_many_modules_share_one_base_and_switch_exactly(run, tiny_model):
    """Each answers as alone, in any order; the same run twice would give two voices of a name."""
    loaded = load_results(results_of(run), CPU)
    assert (len(set(map(id, loaded.models.values()))), loaded.labels) == (1, [BASE, "legal", "hr"])
    kind, stages = AutoPeftModelForCausalLM, run / "stages"
    alone = {task: kind.from_pretrained(stages / f"sft-{task}").eval() for task in ("legal", "hr")}
    alone[BASE] = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    for label in ("hr", BASE, "legal", "hr", BASE):
        with loaded.use(label) as (model, tokenizer):
            assert torch.equal(logits(model, tokenizer), logits(alone[label], tokenizer)), label
    assert not torch.allclose(logits(alone["legal"], tokenizer), logits(alone["hr"], tokenizer))
    with pytest.raises(InputError, match="two results are called"):
        load_results([*results_of(run), *results_of(run)], CPU)


def test_a_talk_goes_to_the_voices_that_are_on(run, capsys):
    """Every module by default, /use one, /base the untrained model, unknown: told, /new forgets."""
    talk = ChatSession(load_results(results_of(run), CPU), max_new_tokens=4)
    talk.ask("hello")
    said = capsys.readouterr().out
    assert said.count("[legal]") == said.count("[hr]") == 1
    talk.line("/use hr")
    talk.ask("hello again")
    assert "[legal]" not in capsys.readouterr().out
    assert len(talk.history["hr"]) == 4
    talk.line("/use nobody")
    assert talk.active == ["hr"]
    talk.line("/base")
    talk.ask("and you?")
    assert "[base]" in capsys.readouterr().out
    talk.line("/new")
    assert talk.history == {}


def test_questions_come_from_a_pipe(run, monkeypatch, capsys):
    """One question a line, plain answers on stdout; an empty line is nothing, `exit` ends. An
    unknown --with is an error with the names.
    """
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n\nhello again\nexit\nmore\n"))
    assert chat_main([str(run), "--with", "legal", "--max-new-tokens", "3"]) == 0
    said = capsys.readouterr()
    assert "2 results on 1 base" in said.err
    assert ("[" in said.out.replace("[PAD", ""), said.out.count("\n")) == (False, 2)
    assert chat_main([str(run), "--with", "legall"]) == 2
    assert "legal" in capsys.readouterr().err


def test_the_newest_run_is_the_one_that_ended_last(tmp_path, tiny_model):
    """By the end of the run, not by the folder's name; none at all is an error."""
    with pytest.raises(InputError, match="no finished run"):
        newest_run(tmp_path)
    for name, hour in (("b", "09"), ("a", "10")):
        ended = f"2026-11-25T{hour}:00:00Z"
        lora_run(tmp_path / "runs" / name, tiny_model, {"x": 1}, finished_at=ended, update="full")
    assert newest_run(tmp_path).name == "a"


def test_a_merged_model_is_the_unmerged_one(run, tmp_path, monkeypatch):
    """Merging changes nothing on held-out rows, or on general texts if the run was not judged, and
    never writes over a folder with files.
    """
    out = tmp_path / "out"
    assert "the original weights (float32)" in export(run, out, only="legal", device=CPU)[0]
    gap = json.loads((out / "merge.json").read_text())["gaps"][0]
    assert gap["greatest"] < 1e-3
    assert gap["same_choice"] == 1.0
    merged = AutoModelForCausalLM.from_pretrained(out).eval()
    loaded = load_results([one for one in results_of(run) if one.label == "legal"], CPU)
    with loaded.use("legal") as (model, tokenizer):
        assert torch.allclose(logits(model, tokenizer), logits(merged, tokenizer), atol=1e-4)
    with pytest.raises(InputError, match="not empty"):
        export(run, out, only="legal", device=CPU)
    record = record_of(run)
    record = replace(record, stages=[replace(one, evaluation=None) for one in record.stages])
    monkeypatch.setattr("trainers.tools.merge.record_of", lambda _: record)
    lines = export(run, tmp_path / "unjudged", only="legal", device=CPU)
    assert "of 8 general texts (the run was not judged) differ" in lines[1]


def test_an_export_that_fails_is_one_document_with_the_tools_error(run, call, monkeypatch):
    """What the tool said stands in `error`, in `messages` and on standard error."""
    said = CompletedProcess((), 2, "merging\n", "0 of 3\nerror: sft: it is whole\n  serve it\n")
    monkeypatch.setattr("advisor.commands.export.run_tool", lambda *_, **__: said)
    code, out, err = call("export", run, "--to", "merged", "--json")
    found = json.loads(out)
    fault = {"what": "sft: it is whole", "where": "", "allowed": "", "hint": "serve it"}
    assert (code, found["error"], found["messages"]) == (2, [fault], ["merging"])
    assert "error: sft: it is whole" in err


@pytest.mark.parametrize(
    ("update", "said"),
    [
        ("full", "plain model already"),
        ("adapter", "adds layers"),
        ("prefix", "no weights to merge"),
    ],
)
def test_what_cannot_be_merged_says_why(tmp_path, tiny_model, update, said):
    """Whole models, adapters and prefixes are refused before anything is loaded or written."""
    folder = lora_run(tmp_path / "r", tiny_model, {"x": 1}, update=update)
    with pytest.raises(InputError, match=said):
        export(folder, tmp_path / "out", only=None, device=CPU)
    assert not (tmp_path / "out").exists()


def test_the_base_of_a_moved_project_is_the_one_that_its_plan_names(run, tmp_path, tiny_model):
    """The plan in the run folder says where the model is, whatever was recorded."""
    moved = tmp_path / "run"
    moved.mkdir()
    (moved / "run.json").write_text((run / "run.json").read_text())
    (moved / "plan.yaml").write_text(plan_of("../model", tasks=("legal", "hr")))
    with pytest.raises(InputError, match=r"plan\.yaml: no such folder: .*model\n.*\(model:\)"):
        results_of(moved)
    (tmp_path / "model").symlink_to(tiny_model)
    assert {result.base for result in results_of(moved)} == {str(tiny_model)}


def test_a_base_on_the_hub_is_the_revision_of_the_plan(run, tmp_path, monkeypatch):
    """Chat, merge and export took the newest one."""
    (tmp_path / "run.json").write_text((run / "run.json").read_text())
    plan = plan_of("nobody/model", tasks=("legal", "hr"), more="revision: abc")
    (tmp_path / "plan.yaml").write_text(plan)
    shutil.copytree(run / "stages", tmp_path / "stages")
    load = Mock(side_effect=ValueError)
    monkeypatch.setattr(loading, "model_config", lambda *_: None)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(InputError, match="nobody/model"):
        load_result(results_of(tmp_path)[0], CPU)
    assert load.call_args.kwargs["revision"] == "abc"


@pytest.fixture(scope="module")
def legal_run(tmp_path_factory, tiny_model):
    return lora_run(tmp_path_factory.mktemp("run"), tiny_model, {"legal": 1})


@pytest.fixture
def person(legal_run):
    """The session of a person at a terminal."""
    loaded = load_results(results_of(legal_run), torch.device("cpu"))
    return chat.ChatSession(loaded, max_new_tokens=4, is_interactive=True)


@pytest.fixture
def types(monkeypatch):
    """`types(*lines)`: what the person writes at the prompt."""

    return lambda *lines: monkeypatch.setattr(chat, "read_line", Mock(side_effect=lines))


def test_result_and_base_answer_a_person_one_after_the_other(person, monkeypatch, capsys):
    """Each behind its name, the result first; an answer that the limit of the command cuts is said."""
    monkeypatch.setattr(chat, "stop_ids", lambda model: [])
    person.ask("hello")
    said = capsys.readouterr()
    assert said.out.startswith("[legal] ")
    assert "\n[base] " in said.out
    assert "legal: cut at 4 tokens; --max-new-tokens allows more" in said.err


def test_an_interrupted_question_leaves_the_conversation_as_it_was(
    person, types, monkeypatch, capsys
):
    """Ctrl-C in an answer ends it alone: what was said before stays, for both models."""
    person.ask("hello")
    before = json.loads(json.dumps(person.history))
    types("hello again", "/new", "exit")
    answers = []

    def press(self, name, asked, title):
        answers.append(json.loads(json.dumps(person.history)))
        if len(answers) == 2:
            raise KeyboardInterrupt
        return "an answer", ""

    monkeypatch.setattr(chat.ChatSession, "_answer", press)
    assert (chat.talk(person, is_interactive=True), answers) == (0, [before, before])
    said = capsys.readouterr().err
    assert "interrupted: this question and what was answered do not count" in said
    assert "a new conversation" in said
    assert person.history == {}


def test_ctrl_c_at_the_prompt_says_how_to_leave(person, monkeypatch, capsys):
    """Once it says so, a second time it leaves; Ctrl-D leaves at once."""
    with monkeypatch.context() as patch:
        patch.setattr(chat, "read_line", press := Mock(side_effect=KeyboardInterrupt))
        assert chat.talk(person, is_interactive=True) == 130
    assert press.call_count == 2
    assert "exit or Ctrl-D ends the chat" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert chat.talk(person, is_interactive=True) == 0


@pytest.mark.parametrize("word", ["exit", "quit", "Exit", "/exit", "/quit", "/q"])
def test_words_that_leave_are_no_questions(person, types, word):
    """`exit` was sent to the model once."""
    types(word)
    assert (chat.talk(person, is_interactive=True), person.history) == (0, {})


def test_a_full_context_is_said_and_the_chat_goes_on(person, types, monkeypatch, capsys):
    """An answer that it cuts, and a conversation that is longer; a pipe ends with an error."""
    monkeypatch.setattr(chat, "context_of", lambda model: 30)
    types("hello", "hello " * 40, "/new", "exit")
    person.max_new_tokens = 64
    monkeypatch.setattr(chat, "stop_ids", lambda model: [])
    assert chat.talk(person, is_interactive=True) == 0
    said = capsys.readouterr().err
    assert "base: the context of 30 tokens is full; /new starts a new conversation" in said
    assert "the conversation is longer than the model's context of 30 tokens" in said
    with pytest.raises(InputError, match="longer than the model's context"):
        person.ask("hello " * 40)


def test_a_person_is_greeted_with_run_and_base(legal_run, tmp_path):
    """What it is, in a line; the verdict was said by `advise chat`, and is not said again."""
    record = json.loads((legal_run / "run.json").read_text())
    verdict = {"ok": True, "task": {"status": "better", "text": "held-out loss 4.5 -> 3.1"}}
    (tmp_path / "run.json").write_text(json.dumps(record | {"max_steps": 6, "verdict": verdict}))
    base = Path(record["model"]).name
    assert chat.greeting(tmp_path, record_of(tmp_path)) == (
        f"{tmp_path}: sft with lora on {base}, a trial of at most 6 steps"
    )
    assert chat.greeting(legal_run, record_of(legal_run)) == f"{legal_run}: sft with lora on {base}"


def scoring_run(folder, tiny_model, *, names):
    """A run folder with a head of random weights: one score, or a class for each name."""
    save_module(tiny_model, folder / "stages" / "sft", "lora", seed=1, scores=len(names) or 1)
    found = {"confusion": {"labels": names, "counts": [[1, 0], [0, 1]]}} if names else {}
    stage = {
        "name": "sft", "objective": "sft" if names else "rm", "update": "lora", "status": "done",
        "folder": "stages/sft", "evaluation": found,
    }  # fmt: skip
    record = {
        "schema_version": 1, "status": "done", "model": str(tiny_model), "stages": [stage],
        "resolved": {"sft": {"options": {"head": "classes"}}} if names else {},
        "hardware": {"kind": "cpu"},
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(record))
    kind = "objective: sft, head: classes" if names else "objective: rm"
    (folder / "plan.yaml").write_text(plan_of(tiny_model).replace("objective: sft", kind))
    return folder


def test_a_classifier_names_the_class_of_each_line(tmp_path, tiny_model, monkeypatch, capsys):
    """With the share of each class."""
    folder = scoring_run(tmp_path, tiny_model, names=["ham", "spam"])
    monkeypatch.setattr("sys.stdin", io.StringIO("free prize\nlunch on friday\n"))
    assert chat.main([str(folder)]) == 0
    found = capsys.readouterr()
    assert "sft names the class of each line: 2 classes" in found.err
    assert found.out.count("\n") == 2
    for line in found.out.splitlines():
        (one, share), (other, rest) = (part.split() for part in line.split(", "))
        assert {one, other} == {"ham", "spam"}
        assert 0.99 < float(share) + float(rest) < 1.01
        assert float(share) >= float(rest)


def test_a_reward_model_scores_the_answer_behind_each_question(
    tmp_path, tiny_model, monkeypatch, capsys
):
    """As the loaded model does; the same answer gets the same score."""
    folder = scoring_run(tmp_path, tiny_model, names=[])
    monkeypatch.setattr("sys.stdin", io.StringIO("hi\nGood morning!\nhi\nGo away\nhi\nGo away\n"))
    assert chat.main([str(folder)]) == 0
    first, second, third = capsys.readouterr().out.split()
    assert first != second == third
    assert float(first) < 100


@pytest.fixture
def asked(monkeypatch):
    """What a stand-in of lm-evaluation-harness was given: models, and tasks with their folder."""
    seen = SimpleNamespace(models=[], tasks=[])

    def load(pretrained, tokenizer, batch_size):
        seen.models.append(pretrained)
        return pretrained

    def evaluate(model, tasks, **_):
        seen.tasks.append((tasks[0], harness.Path.cwd()))
        row = {"doc_id": 0, "filter": "none", "metrics": ["acc"], "acc": 1.0, "doc": "a question"}
        return {
            "results": {"a": {"acc,none": torch.tensor(1.0).numpy().max()}},
            "configs": {"a": {"metric_list": None, "doc_to_text": "..."}},
            "samples": {"a": [row]},
        }

    for name, parts in {
        "lm_eval": {"simple_evaluate": evaluate},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": load},
        "lm_eval.utils": {"handle_non_serializable": float},
    }.items():
        monkeypatch.setitem(sys.modules, name, SimpleNamespace(**parts))
    monkeypatch.setattr(harness, "version", lambda name: "0")
    return seen


def test_a_model_is_loaded_once_for_all_benchmarks_as_it_is(asked, tiny_model, tmp_path):
    """A padded vocabulary stays, a task file finds its data, and answers have no question texts."""
    padded = AutoModelForCausalLM.from_pretrained(tiny_model)
    rows = padded.config.vocab_size + 24
    padded.resize_token_embeddings(rows)
    shutil.copytree(tiny_model, tmp_path / "model")
    padded.save_pretrained(tmp_path / "model")
    (tmp_path / "tasks").mkdir()
    record = {"schema_version": 1, "status": "done", "model": "m", "stages": []}
    (tmp_path / "run.json").write_text(json.dumps(record))
    code, files = asked_for(tmp_path, tmp_path / "model", "arc_easy", "tasks/own.yaml")
    assert code == 0
    (model,) = asked.models
    assert model.get_input_embeddings().weight.shape[0] == rows
    own = tmp_path / "tasks" / "own.yaml"
    assert [task for task, _ in asked.tasks] == ["arc_easy", str(own)]
    assert asked.tasks[1][1] == own.parent
    for file in files:
        told = json.loads(file.read_text())["results"]
        assert told["results"] == {"a": {"acc,none": 1.0}}
        (row,) = told["samples"]["a"]
        assert row == {"doc_id": 0, "filter": "none", "acc": 1.0}


def asked_for(folder, model, *tasks):
    """Benchmarks of the base of a run in this folder: the exit code, and the file of each answer."""
    (folder / "plan.yaml").write_text(plan_of(model, more="launch: {device: cpu}"))
    files = [folder / "benchmarks" / f"{number}.json" for number in range(len(tasks))]
    wanted = [
        {"name": "base", "task": task, "to": str(file)}
        for task, file in zip(tasks, files, strict=True)
    ]
    (folder / "request.json").write_text(json.dumps({"limit": None, "wanted": wanted}))
    return harness.main([str(folder), str(folder / "request.json")]), files


def test_what_the_library_raises_names_the_benchmark(asked, tiny_model, tmp_path, monkeypatch):
    """In error.json, with exit code 2."""
    refuse = Mock(side_effect=KeyError("no_such"))
    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", refuse)
    assert asked_for(tmp_path, tiny_model, "arc_easy")[0] == 2
    said = json.loads((tmp_path / "benchmarks" / "error.json").read_text())
    assert said["what"].startswith("evaluation.tasks: arc_easy: lm-evaluation-harness cannot run")
