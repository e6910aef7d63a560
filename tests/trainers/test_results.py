"""Results of runs in use: one base for all, exact switching, talking, merging."""

import io
import json
from pathlib import Path
from subprocess import CompletedProcess
from unittest.mock import Mock

import pytest

torch = pytest.importorskip("torch")

from msgspec.structs import replace
from peft import AutoPeftModelForCausalLM, LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from advisor.ground.errors import InputError
from advisor.record.files import newest_run
from trainers.start import loading
from trainers.tools.chat import ChatSession
from trainers.tools.chat import main as chat_main
from trainers.tools.merge import export
from trainers.tools.results import BASE, load_result, load_results, record_of, results_of

CPU = torch.device("cpu")


def lora_run(
    folder, tiny_model, tasks, *, finished_at="2026-11-25T10:00:00Z", update="lora"
) -> Path:
    """A run folder with one real LoRA (of random weights, by seed) for each task."""
    samples = [
        {"prompt": "Where is my parcel?", "expected": "We look."},
        {"prompt": "hello", "expected": "good morning"},
    ]
    for task, seed in tasks.items():
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
    assert len(set(map(id, loaded.models.values()))) == 1
    assert loaded.labels == [BASE, "legal", "hr"]
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
    """One question a line, answers on stdout; an unknown --with is an error with the names."""
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/quit\n"))
    assert chat_main([str(run), "--with", "legal", "--max-new-tokens", "3"]) == 0
    assert "2 results on 1 base" in capsys.readouterr().err
    assert chat_main([str(run), "--with", "legall"]) == 2
    assert "legal" in capsys.readouterr().err


def test_the_newest_run_is_the_one_that_ended_last(tmp_path, tiny_model):
    """By the end of the run, not by the folder's name; none at all is an error."""
    with pytest.raises(InputError, match="no finished run"):
        newest_run(tmp_path)
    for name, hour in (("b", "09"), ("a", "10")):
        ended = f"2026-11-25T{hour}:00:00Z"
        lora_run(tmp_path / "runs" / name, tiny_model, {"x": 1}, finished_at=ended)
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
    (tmp_path / "stages").symlink_to(run / "stages")
    load = Mock(side_effect=ValueError)
    monkeypatch.setattr(loading, "model_config", lambda *_: None)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", load)
    with pytest.raises(InputError, match="nobody/model"):
        load_result(results_of(tmp_path)[0], CPU)
    assert load.call_args.kwargs["revision"] == "abc"
