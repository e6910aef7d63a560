"""Methods of one's own, from a folder that ADVISE_METHODS names, go through the whole program."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.ground.yaml_files import read_yaml
from tests.methods.method_files import write_objective, write_update

HIDDEN, HELD = 1024, 4  # of Qwen3-0.6B, and how many layers the update trains unless told otherwise
MODEL = ("--model", "Qwen/Qwen3-0.6B")
ASKED = ("--json", "--task", "qa", "--data", "pairs.jsonl", *MODEL, "--gpu", "RTX 4090")
PREFER = tuple(part.replace("pairs.jsonl", "prefer.jsonl") for part in ASKED)
CHOOSE = ("--force", "--plan", "plan.yaml", "--choose")
ARITHMETIC = '''"""Biases: five vectors as long as a hidden state, in each of the last layers."""


def trainable_params(run):
    return 5 * run.dims.hidden * (run.options.get("held") or 4)
'''
RULE = "because: tried at home, sources: [trl], confidence: practice"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with one further update and one further objective, laid out as the project is."""
    root = tmp_path_factory.mktemp("own")
    write_update(
        root, "bias", arithmetic="bias", added="biases", serves="[transformers]",
        keys="{held: {type: integer, min: 1, max: 99, default: 4, help: how many of the last layers}}",
        defaults="{learning_rate: 1.0e-3}",
        quantizations="{nf4: {id: qbias, name: QBias, phrase: by training its biases,"
        " phrase_per_task: 'by training biases for {tasks}', meaning: biases on 4 bits}}",
        settings="\n  - {id: bias/held, when: {update: bias, data_rows: {gte: 1000}}, then: {held: 8}, "
        f"{RULE}}}",
    )  # fmt: skip
    write_objective(
        root,
        "heart",
        settings="\n  - {id: heart/lr-module, when: {objective: heart, update_trains: module}, "
        f"then: {{learning_rate: 5.0e-5, epochs: 3}}, {RULE}}}"
        "\n  - {id: heart/lr-full, when: {objective: heart, update_trains: all}, "
        f"then: {{learning_rate: 5.0e-6, epochs: 3}}, {RULE}}}",
    )
    (root / "estimate" / "methods").mkdir(parents=True)
    (root / "estimate" / "methods" / "bias.py").write_text(ARITHMETIC)
    return root


@pytest.fixture
def call(folder, tmp_path, monkeypatch):
    """Runs `advise` in a process of its own that knows the folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Question {i}?", "completion": f"A good answer {i}."} for i in range(240)]
    pairs = [{"prompt": row["prompt"], "chosen": "yes", "rejected": "no"} for row in rows]
    for name, listed in (("pairs", rows), ("prefer", pairs)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in listed))

    def run(*arguments, code=0, own=folder):
        done = subprocess.run(
            [sys.executable, "-m", "advisor", *arguments],
            env={**os.environ, "ADVISE_METHODS": str(own)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    return run


def test_the_linter_has_no_error_with_them(call):
    """Rules that ask for every scheme are proved with the further one too."""
    report = json.loads(call("rules", "lint", "--json"))
    assert report["counts"]["error"] == 0
    about = {
        finding["severity"]
        for finding in report["findings"]
        if "bias" in finding["text"] or str(finding["rule"]).startswith(("bias/", "heart/"))
    }
    assert about == {"note"}


def test_a_further_update_is_one_of_the_alternatives(call):
    """It says why it is not first; a server that its file does not list rules it out."""
    for more, verdict in (((), "ranked_lower"), (("--serve-with", "vllm"), "forbidden")):
        advice = json.loads(call(*ASKED, *more))
        others = {one["composition"]: one for one in advice["alternatives"]}
        assert {"sft+bias", "sft+qbias", "sft+qlora", "sft+full"} <= set(others)
        assert others["sft+bias"]["verdict"] == verdict
        assert advice["recommendation"]["composition"] == "sft+lora"
    because = others["sft+bias"]["because"]
    assert "evidence/not-loaded-there" in [reason["rule"] for reason in because]


@pytest.mark.parametrize(
    ("chosen", "rate", "epochs"),
    [
        ("sft+bias", 1.0e-3, 3),  # its own default, the epochs of every small file
        ("sft+qbias", 1.0e-3, 3),  # on a quantised base, under a name of its own
        ("orpo+bias", 5.0e-5, None),  # a rule of orpo for whatever trains a module
        ("heart+bias", 5.0e-5, 3),  # a rule of the further objective for a module
        ("heart+full", 5.0e-6, 3),
    ],
)
def test_what_is_chosen_by_hand_gets_a_plan(call, tmp_path, chosen, rate, epochs):
    """Settings for what an update trains reach a further update and objective."""
    call(*(PREFER if "orpo" in chosen else ASKED), *CHOOSE, chosen)
    (stage,) = read_yaml(tmp_path / "plan.yaml").data["stages"]
    quantized = "q" if stage.get("quantization") == "nf4" else ""
    assert f"{stage['objective']}+{quantized}{stage['update']}" == chosen
    assert stage["learning_rate"] == rate
    assert stage["epochs"] == epochs or epochs is None
    # A module in float32 over a 16-bit base, or every weight in float32.
    assert stage["precision"] == "mixed"
    assert stage["weights_dtype"] == ("float32" if chosen == "heart+full" else "bfloat16")
    if quantized:
        assert json.loads(call("estimate", "plan.yaml", "--json"))[0]["peak_gib"] > 0.5


def test_its_own_key_is_read_bounded_and_counted(call):
    """The key that its file declares belongs to the stage, and its arithmetic sees it."""
    call(*ASKED, *CHOOSE, "sft+bias")
    path = Path("plan.yaml")
    text = path.read_text()
    flags = ("estimate", *MODEL, "--update", "bias", "--objective", "heart", "--json")
    counted = [(HELD, json.loads(call(*flags))["terms"])]
    for held in (4, 40):
        path.write_text(text.replace("update: bias", f"update: bias\n    held: {held}"))
        (stage,) = json.loads(call("estimate", "plan.yaml", "--json"))
        counted.append((held, stage["terms"]))
    for held, terms in counted:
        (biases,) = (term["because"] for term in terms if term["name"] == "biases")
        assert f"{5 * HIDDEN * held:,} trainable parameters" in biases
    for wrong, said in (
        ("update: bias\n    held: 100", "`held` is 100\n  a whole number from 1 to 99"),
        ("update: lora\n    held: 4", "held"),
    ):
        path.write_text(text.replace("update: bias", wrong))
        assert said in call("estimate", "plan.yaml", code=2)


def test_a_rate_that_nothing_sets_is_asked_of_its_file(call, tmp_path):
    """The plan says which file lacks a learning rate that no rule and no default gives."""
    own = tmp_path / "own"
    update = write_update(own, "still", order="901")
    said = call(*ASKED, *CHOOSE, "sft+still", code=2, own=own)
    assert f"{update}:1:5: no rule sets a learning_rate for sft" in said
    assert not (tmp_path / "plan.yaml").exists()
    assert json.loads(call(*ASKED, own=own))["recommendation"]["composition"] == "sft+lora"
    objective = write_objective(own, "soul")
    said = call("rules", "lint", "--json", code=2, own=own)
    assert f"{objective}:1:5: no rule sets a learning_rate for soul where" in said


def test_its_rules_say_where_they_stand(call, folder):
    """A rule of a method's own file is explained like any other, with the whole path."""
    said = call("rules", "heart/lr-module")
    assert "the stage trains by LoRA" in said
    assert f"{folder}/rules/objectives/heart.yaml" in "".join(said.split())


def test_without_the_folder_it_is_unknown(call):
    """Nothing stays behind: another process knows the project's methods alone."""
    assert "unknown scheme 'bias'" in call(*ASKED, *CHOOSE, "sft+bias", code=2, own="")


def test_a_preference_objective_names_its_own_rate(call, tmp_path):
    """The rate of an update's file is for given texts: the linter asks for another one."""
    own = tmp_path / "own"
    path = write_objective(own, "apo", trains_on="[preference]", pairs="true")
    asked = (*PREFER, *CHOOSE, "apo+lora")
    said = call(*asked, code=2, own=own)
    assert f"{path}:1:5: no rule sets a learning_rate for apo with lora" in said
    assert "defaults: {learning_rate: 5.0e-6}" in said
    said = call("rules", "lint", "--json", code=2, own=own)
    assert said.count(f"{path}:1:5: no rule sets a learning_rate for apo where") == 2
    small = "{objective: apo, params_b: [unknown, {lt: 10}]}"
    for when, code in ((small, 2), ("{objective: apo}", 0)):
        settings = f"[{{id: apo/rate, when: {when}, then: {{learning_rate: 5.0e-6}}, {RULE}}}]"
        write_objective(own, "apo", trains_on="[preference]", pairs="true", settings=settings)
        said = call("rules", "lint", "--json", code=code, own=own)
        assert ("of a model of 12 billion parameters is trained" in said) == (code == 2)
    call(*asked, own=own)
    assert read_yaml(tmp_path / "plan.yaml").data["stages"][0]["learning_rate"] == 5.0e-6
