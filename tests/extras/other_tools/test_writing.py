"""A plan becomes another tool's file: losses are named, and what it cannot hold is refused."""

import ast
import json
import re

import pytest
import yaml
from hypothesis import Phase, given, reject, settings
from hypothesis import strategies as st

from advisor.export.exporter import exporters
from advisor.extras.other_tools.files import write_files
from advisor.extras.other_tools.mapping import flat_stage, read, usual_values
from advisor.extras.other_tools.tool import TOOLS, tool_named
from advisor.ground.errors import InputError
from advisor.ground.version import __version__
from advisor.plan.entries import entries
from advisor.plan.read import read_plan
from tests.conftest import ROOT, golden
from tests.data.conftest import BOT, USER, jsonl

QUESTIONS = [(f"What is {a} plus {b}?", f"It is {a + b}.") for a in range(5) for b in range(5)]
ANSWERS = {
    "pairs": lambda asked, said, place: {"prompt": asked, "completion": said},
    "text": lambda asked, said, place: {"text": f"{asked} {said}"},
    "preference": lambda asked, said, place: {
        "prompt": asked, "chosen": said, "rejected": "I do not know.",
    },
    "feedback": lambda asked, said, place: {
        "prompt": asked, "completion": said, "label": place % 2 == 0,
    },
    "prompts": lambda asked, said, place: {"prompt": asked, "answer": said},
    "chat": lambda asked, said, place: {"messages": [
        {"role": role, "content": text} for role, text in (
            ("system", "You are a calculator."), ("user", asked), ("assistant", said),
            ("user", "Sure?"), ("assistant", "Yes."),
        )
    ]},
}  # fmt: skip
ROWS = {
    name: [row(asked, said, place) for place, (asked, said) in enumerate(QUESTIONS)]
    for name, row in ANSWERS.items()
}
DATA_OF = {
    "sft": "pairs", "cpt": "text", "dpo": "preference", "orpo": "preference",
    "simpo": "preference", "rm": "preference", "kto": "feedback", "grpo": "prompts",
}  # fmt: skip
# What each tool holds.
HELD = {
    "trl": ("sft", "cpt", "dpo", "kto", "rm"),
    "llamafactory": ("sft", "cpt", "dpo", "orpo", "simpo", "kto", "rm"),
    "axolotl": ("sft", "cpt", "dpo", "orpo", "simpo"),
}


def plan_file(folder, *stages, data="pairs", model="org/Model-1B", **top):
    """A plan with its data beside it."""
    for name, rows in ROWS.items():
        jsonl(folder, rows, f"{name}.jsonl")
    plan = {"version": 1, "name": "shop", "model": model, "stages": list(stages), **top}
    if "tasks" not in top:
        plan["data"] = {"path": f"{data}.jsonl"}
    path = folder / "plan.yaml"
    path.write_text(yaml.safe_dump(plan, sort_keys=False))
    return path


def stage(objective, update="lora", **keys):
    """One stage."""
    named = {"name": objective, "objective": objective, "update": update}
    return {**named, "learning_rate": 2e-4, **keys}


def write(tool_id, path, out="out", only=None):
    """The files of the plan, in a folder beside it."""
    return write_files(tool_id, path, path.parent / out, only=only)


def written_values(folder, name):
    """The file as its tool reads it."""
    return yaml.safe_load((folder / name).read_text("utf-8"))


def rows_in(folder, name="train"):
    """The rows of a data file that was written."""
    text = (folder / "data" / f"{name}.jsonl").read_text("utf-8")
    return [json.loads(line) for line in text.splitlines()]


CHOICES = {
    "learning_rate": [1e-5, 2e-4, 0.001], "epochs": [1.0, 2.5, 3.0], "max_steps": [None, 7],
    "warmup": [0.0, 0.03, 0.1], "scheduler": ["linear", "cosine", "constant"],
    "weight_decay": [0.0, 0.01],
    "optimizer": ["adamw_fused", "adamw_8bit", "paged_adamw_8bit", "adafactor"],
    "micro_batch_size": range(1, 17), "grad_accum": range(1, 17), "seq_len": [256, 1024, 4096],
    "group_by_length": [False, True], "gradient_checkpointing": [False, True],
    "attention": ["auto", "sdpa", "eager", "flash_attention_2"],
    "kernels": ["none", "auto", "liger", "hub"], "compile": [False, True],
    "truncation": ["stop", "drop", "truncate"], "holdout": [0.1], "keep": ["best", "last"],
    "save_steps": [None, 50], "seed": range(100), "weights_dtype": ["float32", "bfloat16"],
    "precision": ["pure", "mixed"],
}  # fmt: skip
LORA_CHOICES = {
    "rank": [8, 16, 64], "alpha": [16, 32], "dropout": [0.0, 0.05], "rslora": [False, True],
    "target_modules": ["all-linear", ["q_proj", "v_proj"]], "quantization": [None, "nf4", "int8"],
}  # fmt: skip


# Not in the file itself: the data's split, our own clock, keys of whole runs.


# Not in the file itself: the data's split, our own clock, keys of whole runs.
ASIDE = {"holdout", "save_minutes", "processes", "strategy", "trust_remote_code", "revision"}


@pytest.mark.parametrize("tool_id", ["trl", "llamafactory", "axolotl"])
@given(drawn=st.data())
@settings(max_examples=15, deadline=None, phases=(Phase.explicit, Phase.generate))
def test_what_comes_back_from_a_tools_file_is_the_plan_but_for_what_was_named(
    tool_id, drawn, tmp_path_factory
):
    """Plan -> file -> plan: every other value is named as lost in the file."""
    folder = tmp_path_factory.mktemp("plan")
    objective = drawn.draw(st.sampled_from(HELD[tool_id]))
    update = drawn.draw(st.sampled_from(["lora", "full"]))
    choices = CHOICES | (LORA_CHOICES if update == "lora" else {})
    if objective == "sft":
        choices |= {"packing": [False, True], "loss_on": ["answers", "all"]}
    one_of_each = {key: st.sampled_from(some) for key, some in choices.items()}
    keys = drawn.draw(st.fixed_dictionaries(one_of_each))
    path = plan_file(folder, stage(objective, update) | keys, data=DATA_OF[objective])
    try:
        plan = read_plan(path)
    except InputError:  # keys that do not go together
        reject()
    job, tool = write(tool_id, path).jobs[0], tool_named(tool_id)
    values = written_values(folder / "out", tool.file)
    kind = "text" if objective == "cpt" else "rows"
    theirs = {**values, "command": job.command, "data_kind": kind}
    back = read(tool, theirs, defaults=tool.defaults_of(job.command)).ours
    (entry,) = entries(plan)
    usual = usual_values(objective, update)
    named = {one.key for one in job.lost} | ASIDE
    expected = {
        key: value
        for key, value in flat_stage(plan, entry.stage).items()
        if key not in named and (key in back or value != usual.get(key))
    }
    assert {key: back.get(key) for key in expected} == expected
    assert all(tool.has(key, job.command) for key in values)


@pytest.mark.parametrize(("tool_id", "objective"), [(t, o) for t in HELD for o in HELD[t]])
def test_every_row_is_written_once_and_held_out_rows_are_a_file_of_their_own(
    tool_id, objective, tmp_path, approved
):
    """Nothing of the data gets lost on the way."""
    path = plan_file(tmp_path, stage(objective, holdout=0.2), data=DATA_OF[objective])
    done = write(tool_id, path)
    train, test = (rows_in(tmp_path / "out", name) for name in ("train", "test"))
    text = (tmp_path / "out" / done.jobs[0].file).read_text("utf-8")
    approved([text.splitlines(), done.lines(), train[:2], test[0]])
    assert len(train) + len(test) == len(QUESTIONS)
    assert 0 < len(test) < 10
    assert all((asked in str(train)) != (asked in str(test)) for asked, _ in QUESTIONS)


@pytest.mark.parametrize(
    ("tool_id", "made"),
    [
        ("trl", stage("orpo")),
        ("llamafactory", stage("grpo")),
        ("axolotl", stage("kto")),
        ("trl", stage("sft", "prefix")),
        ("llamafactory", stage("sft", "adapter")),
        ("axolotl", stage("sft", "ia3")),
        ("trl", stage("sft", head="classes")),
        ("trl", stage("grpo", response_tokens=64)),
        ("axolotl", stage("rm")),
    ],
)
def test_what_a_tool_cannot_hold_is_refused_with_the_way_out(tool_id, made, tmp_path, approved):
    """Nothing is written for a plan that the tool would train as another one."""
    path = plan_file(tmp_path, made, data=DATA_OF.get(made["objective"], "pairs"))
    with pytest.raises(InputError) as raised:
        write(tool_id, path)
    approved(raised.value.text())
    assert not (tmp_path / "out").exists()


def test_stages_are_a_chain_of_files_and_tasks_have_one_each(tmp_path):
    """The second stage starts from the merged result of the first. What somebody edited stays."""
    path = plan_file(tmp_path, stage("sft"), stage("dpo"), data="preference")
    write("trl", path, "two")
    files = [tmp_path / "two" / f"trl.{name}.yaml" for name in ("1-sft", "2-dpo")]
    first, second = (yaml.safe_load(file.read_text("utf-8")) for file in files)
    assert (first["output_dir"], second["model_name_or_path"]) == ("out/1-sft", "out/1-sft-merged")
    assert "merge_and_unload" in files[1].read_text()
    files[0].write_text("learning_rate: 1\n")
    with pytest.raises(InputError, match="nothing is overwritten"):
        write("trl", path, "two")
    assert (files[0].read_text(), not list(tmp_path.glob(".*"))) == ("learning_rate: 1\n", True)
    tasks = [{"name": name, "data": {"path": "pairs.jsonl"}} for name in ("legal", "hr")]
    path = plan_file(tmp_path, stage("sft"), tasks=tasks)
    files = [job.file for job in write("llamafactory", path, "tasks").jobs]
    assert files == ["llamafactory.legal.yaml", "llamafactory.hr.yaml"]
    info = json.loads((tmp_path / "tasks" / "dataset_info.json").read_text())
    assert set(info) == {"legal", "legal_test", "hr", "hr_test"}
    assert [job.file for job in write("axolotl", path, "one", "hr").jobs] == ["axolotl.hr.yaml"]


def test_rows_that_a_tool_cannot_hold_are_refused_or_counted(tmp_path, approved):
    """A few are left out with a count, many stop the export; TRL gets a row for each answer."""
    path = plan_file(tmp_path, stage("sft", holdout=0.0))
    called = {**BOT, "content": "", "tool_calls": [{"function": {"name": "add"}}]}
    plain, row = ({"messages": [USER, one]} for one in (BOT, called))
    jsonl(tmp_path, [plain] * 30 + [row], "pairs.jsonl")
    (job,) = write("llamafactory", path, "few").jobs
    assert any("1 row left out" in note and "tools" in note for note in job.notes)
    jsonl(tmp_path, [plain] * 30 + [row] * 10, "pairs.jsonl")
    with pytest.raises(InputError, match="cannot hold tools") as refused:
        write("llamafactory", path, "many")
    approved([job.notes, refused.value.text()])
    assert not (tmp_path / "many").exists()
    write("trl", path, "all")
    assert len(rows_in(tmp_path / "all")) == 40
    write("trl", plan_file(tmp_path, stage("sft", holdout=0.0), data="chat"), "chat")
    rows = rows_in(tmp_path / "chat")
    assert (len(rows), {len(row["prompt"]) for row in rows}) == (2 * len(QUESTIONS), {2, 4})
    assert written_values(tmp_path / "chat", "trl.yaml")["completion_only_loss"] is True


@pytest.mark.extra("hub", "trackers")
@pytest.mark.parametrize("tool_id", TOOLS)
def test_trackers_and_the_hub_are_written_in_the_tools_own_words(tool_id, tmp_path):
    """The last stage alone is uploaded, once and privately; nothing is called lost."""
    top = {"trackers": ["wandb"], "push_to": "mia/shop"}
    done = write(tool_id, plan_file(tmp_path, stage("sft"), stage("sft", name="more"), **top))
    assert not set(top) & {one.key for job in done.jobs for one in job.lost}
    first, last = (job.values for job in done.jobs)
    words = {"report_to": ["wandb"], "push_to_hub": True, "hub_private_repo": True}
    if tool_id == "axolotl":
        words = {"use_wandb": True, "wandb_project": "shop"}
    words |= {"hub_model_id": "mia/shop", "hub_strategy": "end"}
    assert ({key: last.get(key) for key in words}, "hub_model_id" in first) == (words, False)


@pytest.mark.parametrize("tool_id", HELD)
def test_a_file_looks_as_it_was_looked_at(tool_id, tmp_path):
    """Header and values of one plan are exactly as approved, and each tool has an exporter."""
    assert set(TOOLS) == set(HELD) <= set(exporters())
    made = stage(
        "sft", quantization="nf4", rank=16, alpha=32, weights_dtype="bfloat16", precision="mixed",
        epochs=3, warmup=0.1, scheduler="cosine", micro_batch_size=4, grad_accum=4, seq_len=1024,
        kernels="auto", attention="auto", holdout=0.2,
    )  # fmt: skip
    launch = {"device": "cuda", "processes": 2}
    done = write(
        tool_id, plan_file(tmp_path, made, data="chat", model="Qwen/Qwen3-8B", launch=launch)
    )
    text = (tmp_path / "out" / done.jobs[0].file).read_text().replace(__version__, "VERSION")
    lines = "\n".join(done.lines()).replace(str(tmp_path), "PLACE")
    assert len(done.lines()) <= 12
    page = f"{text}\n# On the screen:\n{lines}\n"
    assert page == golden(f"written_{tool_id}.txt", page)


UNSLOTH = yaml.safe_load((ROOT / "tests/data_cases/unsloth_config.yaml").read_text("utf-8"))
# Of from_pretrained (unsloth/models/loader.py) and get_peft_model (unsloth/models/llama.py).
LOADS = {
    "model_name", "max_seq_length", "dtype", "load_in_4bit", "load_in_8bit", "load_in_16bit",
    "full_finetuning", "token", "device_map", "rope_scaling", "fix_tokenizer", "trust_remote_code",
    "use_gradient_checkpointing", "revision", "use_exact_model_name", "fast_inference",
    "random_state", "max_lora_rank", "load_in_fp8",
}  # fmt: skip
ADAPTS = {
    "model", "r", "target_modules", "lora_alpha", "lora_dropout", "bias", "layers_to_transform",
    "use_gradient_checkpointing", "random_state", "max_seq_length", "use_rslora", "modules_to_save",
    "init_lora_weights", "loftq_config", "target_parameters",
}  # fmt: skip
PLAN = """\
version: 1
name: replies
model: {model}
data: {{path: rows.jsonl}}
stages:
  - {{name: sft, objective: {objective}, update: {update}, {keys}learning_rate: 0.0002, epochs: 1.5, seq_len: 512}}
launch: {{device: cuda}}
"""


def faults_of(kind, values):
    """What the class would not keep: a key that it drops, a value of another type or choice."""
    for key, value in values.items():
        held = kind.get(key, ())
        if value not in held if isinstance(held, list | tuple) else type(value).__name__ != held:
            yield key, value


def export(call, tmp_path, *, model="Qwen/Qwen3-30B-A3B", objective="sft", update="lora", keys=""):
    rows = [{"prompt": f"Where is {i}?", "completion": f"At {i}."} for i in range(60)]
    if objective == "cpt":
        rows = [{"text": f"The shop at {i} sells lamps of every kind. " * 20} for i in range(60)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = PLAN.format(model=model, objective=objective, update=update, keys=keys)
    (tmp_path / "plan.yaml").write_text(text)
    return call("export", "plan.yaml", "--to", "unsloth", "--out", "u")


@pytest.mark.parametrize(
    ("update", "keys"),
    [("lora", "quantization: nf4, "), ("lora", "rank: 8, packing: true, "), ("full", "")],
)
def test_unsloths_own_classes_keep_every_value(call, tmp_path, update, keys, approved):
    """Its reader drops unknown keys in silence, so each key and type is one of its classes'."""
    code, _, err = export(call, tmp_path, update=update, keys=keys)
    assert code == 0, err
    text = (tmp_path / "u/unsloth.yaml").read_text()
    approved([text.splitlines(), err.splitlines()])
    values = yaml.safe_load(text)
    assert {*values} <= {"model", *UNSLOTH}
    for name, kind in UNSLOTH.items():
        assert list(faults_of(kind, values.get(name, {}))) == []
    training = values["training"]
    assert (training["load_in_4bit"], training["training_type"]) == ("nf4" in keys, update)
    assert training["max_steps"] or training["packing"]  # 1.5 epochs are no whole number there
    assert (tmp_path / "u" / values["data"]["local_dataset"][0]).exists()
    # `gate_proj` would adapt the experts, which a plan leaves as they are
    assert values["lora"]["target_modules"] == "q_proj,k_proj,v_proj,o_proj"


@pytest.mark.parametrize("objective", ["sft", "cpt"])
def test_the_script_has_the_present_form(call, tmp_path, objective, approved):
    """Unsloth is imported first, and only arguments that it has are given."""
    code, _, err = export(call, tmp_path, objective=objective, model="Qwen/Qwen3-8B")
    assert code == 0, err
    tree = ast.parse(text := (tmp_path / "u/train.py").read_text())
    approved(text)
    assert next(one.module for one in tree.body if isinstance(one, ast.ImportFrom)) == "unsloth"
    calls = {
        node.func.attr: {one.arg for one in node.keywords}
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert calls["from_pretrained"] <= LOADS
    assert calls["get_peft_model"] <= ADAPTS
    assert ("train_on_responses_only" in ast.unparse(tree)) == (objective == "sft")
    assert (tmp_path / "u/unsloth.yaml").exists() == (objective == "sft")


@pytest.mark.parametrize("objective", ["sft", "dpo", "kto", "cpt"])
@pytest.mark.parametrize("tool_id", ["trl", "axolotl", "llamafactory", "unsloth"])
def test_rows_that_are_not_written_are_shown_as_they_must_be(call, tmp_path, tool_id, objective):
    """Where no data are named, or a data set stays on the hub: a row in the form of the file."""
    row = {
        "sft": {"prompt": "a", "completion": "b"},
        "dpo": {"prompt": "a", "chosen": "b", "rejected": "c"},
        "kto": {"prompt": "a", "completion": "b", "label": True},
        "cpt": {"text": "a long text"},
    }[objective]
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 20)
    stage = {"name": "s", "objective": objective, "update": "lora", "learning_rate": 1e-4}
    plan = {"name": "p", "model": "Qwen/Qwen3-8B", "stages": [{**stage, "holdout": 0.0}]}
    for path in ("rows.jsonl", "org/rows"):
        (tmp_path / "plan.yaml").write_text(json.dumps({**plan, "data": {"path": path}}))
        code, _, err = call("export", "plan.yaml", "--to", tool_id, "--out", path[:3])
        if "is not written for" in err or (tool_id == "unsloth" and path == "org/rows"):
            assert code == 2
            return
        assert code == 0, err
    written = json.loads((tmp_path / "row/data/train.jsonl").read_text().splitlines()[0])
    (shown,) = [json.loads(one) for one in err.splitlines() if one.startswith("  {")]
    assert {key: type(one) for key, one in shown.items()} == {
        key: type(one) for key, one in written.items()
    }


@pytest.mark.parametrize(
    ("tool_id", "micro", "said"),
    [
        ("trl", 1, "Memory in TRL: about 1"),
        ("axolotl", 8, "In Axolotl: Does not fit: it needs about"),
        ("unsloth", 1, "Memory in Unsloth: about 1"),
    ],
)
def test_the_memory_is_that_of_the_tool_that_trains(call, tmp_path, tool_id, micro, said):
    """A plan fits by what our trainers hold; what does not fit there names the key to lower."""
    row = {"prompt": "word " * 900, "completion": "yes"}
    (tmp_path / "rows.jsonl").write_text((json.dumps(row) + "\n") * 20)
    stage = {"name": "s", "objective": "sft", "update": "lora", "learning_rate": 1e-4}
    stage |= {"seq_len": 1024, "micro_batch_size": micro, "gradient_checkpointing": True}
    stage["weights_dtype"] = "bfloat16"
    plan = {
        "model": "Qwen/Qwen3-8B", "data": {"path": "rows.jsonl"}, "stages": [stage],
        "launch": {"device": "cuda"}, "origin": {"hardware": "1 x RTX 4090 (stated)"},
    }  # fmt: skip
    (tmp_path / "plan.yaml").write_text(json.dumps(plan))
    code, out, err = call("export", "plan.yaml", "--to", tool_id, "--out", "u", "--json")
    assert (code, said in err) == (0, True), err
    assert ("micro_batch_size: " in err) == (micro > 1)
    (memory,) = json.loads(out)["memory"]
    assert (memory["fits"] == "too_big") == (micro > 1)


# A setting of unsloth.yaml -> the argument of train.py that is the same.
SAME = {
    "model": "model_name", "max_seq_length": "max_length", "load_in_4bit": "load_in_4bit",
    "output_dir": "output_dir", "num_epochs": "num_train_epochs", "learning_rate": "learning_rate",
    "batch_size": "per_device_train_batch_size", "max_steps": "max_steps", "packing": "packing",
    "gradient_accumulation_steps": "gradient_accumulation_steps", "warmup_steps": "warmup_steps",
    "weight_decay": "weight_decay", "random_seed": "seed", "lora_r": "r", "use_dora": "use_dora",
    "gradient_checkpointing": "use_gradient_checkpointing", "lora_alpha": "lora_alpha",
    "lora_dropout": "lora_dropout", "target_modules": "target_modules", "use_rslora": "use_rslora",
    "training_type": "full_finetuning", "train_on_completions": "on_responses",
    "local_dataset": "data_files", "format_type": "messages",
}  # fmt: skip


@pytest.mark.parametrize(
    ("update", "keys"),
    [
        ("lora", "quantization: nf4, rank: 8, alpha: 24, dropout: 0.1, rslora: true, "),
        ("lora", "quantization: int8, loss_on: all, warmup: 0.2, gradient_checkpointing: true, "),
        ("lora", "packing: true, peft: {use_dora: true}, "),
        ("full", "max_steps: 7, weight_decay: 0.01, gradient_checkpointing: false, "),
    ],
)
def test_both_files_of_unsloth_say_the_same(call, tmp_path, update, keys):
    """Each setting, or the file that cannot say it names it."""
    code, _, err = export(call, tmp_path, update=update, keys=keys, model="Qwen/Qwen3-8B")
    assert code == 0, err
    page, script = ((tmp_path / "u" / one).read_text() for one in ("unsloth.yaml", "train.py"))
    file = yaml.safe_load(page)
    own = {
        "model": file.pop("model"),
        **{key: v for one in file.values() for key, v in one.items()},
    }
    assert own.keys() == SAME.keys()
    tree = ast.parse(script)
    said = {
        one.arg: ast.literal_eval(one.value)
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
        for one in node.keywords
        if isinstance(one.value, ast.Constant | ast.List | ast.Dict | ast.UnaryOp)
    }
    said |= {"on_responses": "train_on_responses_only(" in script, "messages": "chatml"}
    said["use_dora"] = False  # which it has no argument for
    said["full_finetuning"] = "full" if said["full_finetuning"] else "lora"
    said["data_files"] = [said["data_files"]["train"]]
    said["target_modules"] = ",".join(said.get("target_modules", own["target_modules"].split(",")))
    said["use_gradient_checkpointing"] = said["use_gradient_checkpointing"] or "none"
    said["max_steps"] = max(0, said["max_steps"])
    lost = re.findall(r"(?m)^# (?: - |Not carried over: )(?:peft.)?([\w]+) \(", page + script)
    apart = {
        key
        for key, name in SAME.items()
        if own[key] != said.get(name) and not (update == "full" and key.startswith(("lora", "use")))
    }
    if own["max_steps"]:  # then the passes do not count
        apart -= {"num_epochs"}
    renamed = {"num_epochs": "epochs", "warmup_steps": "warmup"}
    assert {renamed.get(key, key) for key in apart} <= {*lost}
    assert ("quantization" in lost) == ("int8" in keys)
    assert ("use_dora" in lost) == ("use_dora" in keys)


@pytest.mark.parametrize(
    ("keys", "said"),
    [({"objective": "dpo"}, "dpo is not written"), ({"update": "prefix"}, "no update 'prefix'")],
)
def test_what_unsloth_has_no_word_for_is_refused(call, tmp_path, keys, said, approved):
    """And nothing is written."""
    code, _, err = export(call, tmp_path, **keys)
    assert (code, said in err) == (2, True)
    approved(err)
    assert not (tmp_path / "u").exists()
