"""Files of methods: every fault is located, and methods of one's own go through the whole program."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from msgspec import structs

from advisor.estimate import methods as arithmetic
from advisor.estimate.methods import special
from advisor.estimate.spec import run_of_spec
from advisor.ground.errors import InputError
from advisor.ground.resources import resource_root
from advisor.ground.yaml_files import read_yaml
from advisor.methods import kernels, load, methods, schemes
from advisor.methods.links import link_speeds
from advisor.probe.catalogue import find_gpu
from advisor.situation.models import model_shape
from tests.conftest import examples
from tests.methods.method_files import line_of, write_objective, write_update
from tests.ruleset.random_rules import mangled

SHIPPED = methods()


def of_own(root):
    """The project's methods with those of a folder of one's own."""
    return methods((resource_root(), root))


@pytest.fixture
def with_own_folder(tmp_path, monkeypatch):
    """`methods()` as it is where ADVISE_METHODS names a folder."""

    for module in (load, arithmetic):
        monkeypatch.setattr(module, "method_roots", lambda: (resource_root(), tmp_path))
    caches = (methods, schemes, arithmetic._module)
    for cached in caches:
        cached.cache_clear()
    yield tmp_path
    for cached in caches:
        cached.cache_clear()


WHOLE = {
    "serves": "[vllm]",
    "keys": "{steps: {type: integer, min: 1, max: 9, default: 3, help: h}, way: {type: choice, values: [a, b]}}",
    "defaults": "{learning_rate: {value: 1.0e-4, source: trl}}",
    "unused": "{packing: the rows stay apart}",
    "refuses": "[{key: quantization, values: [nf4], because: they are tiny, hint: none}]",
    "quantizations": "{nf4: {id: qbias, name: a, phrase: b, phrase_per_task: c, meaning: d}}",
}


def test_a_file_of_its_own_is_a_method(tmp_path, approved):
    """What a folder of one's own brings stands behind the project's methods, by its `order`."""
    write_objective(tmp_path, "heart", keys=WHOLE["keys"], pairs="true")
    write_update(tmp_path, "bias", **WHOLE)
    found = of_own(tmp_path)
    assert list(found.objectives) == [*SHIPPED.objectives, "heart"]
    assert list(found.updates) == [*SHIPPED.updates, "bias"]
    mine = (found.objective("heart"), found.update("bias"))
    approved([[one.at, structs.replace(one, spot=None)] for one in mine])
    assert {"bias", "qbias"} <= set(found.schemes)
    write_objective(tmp_path / "again", "heart", order="15")
    assert list(of_own(tmp_path / "again").objectives)[:2] == ["cpt", "heart"]


# What is changed in the file of an update, the line that the fault is at, and what it says.
FAULTS = {
    "unknown key": ({"mergs": "true"}, "mergs"), "missing key": ({"phrase": None}, "id"),
    "not an update's key": ({"pairs": "true"}, "pairs"),
    "unknown choice": ({"trains": "modul"}, "trains"),
    "a number as a choice": ({"trains": "3"}, "trains"),
    "a choice of a list": ({"serves": "[vllm, tgi]"}, "serves"),
    "a list of lists": ({"serves": "[[vllm]]"}, "serves"),
    "a text as a number": ({"order": "first"}, "order"),
    "true as a number": ({"order": "true"}, "order"), "a number as a text": ({"name": "3"}, "name"),
    "a text as true": ({"merges": "maybe"}, "merges"), "another id": ({"id": "biases"}, "id"),
    "no arithmetic": ({"arithmetic": None}, "id"),
    "arithmetic that is not there": ({"arithmetic": "lorra"}, "arithmetic"),
    "arithmetic that is a path": ({"arithmetic": "../lora"}, "arithmetic"),
    "a key of an unknown type": ({"keys": "{steps: {type: integr}}"}, "keys"),
    "a key with an unknown part": ({"keys": "{steps: {type: integer, mn: 3}}"}, "keys"),
    "a default outside its bounds": ({"keys": "{steps: {type: integer, min: 3, default: 1}}"}, "keys"),
    "a bound that is no number": ({"keys": "{steps: {type: integer, min: three, default: 1}}"}, "keys"),
    "a choice without values": ({"keys": "{steps: {type: choice}}"}, "keys"),
    "keys as a list": ({"keys": "[steps]"}, "keys"),
    "incomplete refuses": ({"refuses": "[{key: quantization, values: [nf4]}]"}, "refuses"),
    "refuses as a map": ({"refuses": "{a: b}"}, "refuses"),
    "a key that is misspelt under refuses": (
        {"refuses": "[{key: packng, values: [true], because: they are tiny}]"}, "refuses"),
    "a refused value that no key has": (
        {"refuses": "[{key: packing, values: ['yes'], because: they are tiny}]"}, "refuses"),
    "a default of no key": ({"defaults": "{learning_rat: 1.0e-4}"}, "defaults"),
    "a default that its key cannot have": ({"defaults": "{learning_rate: {value: 3, source: trl}}"}, "defaults"),
    "an unused key that there is not": ({"unused": "{packng: the rows stay apart}"}, "unused"),
    "a bound of a text": ({"keys": "{steps: {type: text, min: 3}}"}, "keys"),
    "settings that are no list": ({"settings": "{a: 1}"}, "settings"),
    "incomplete quantizations": ({"quantizations": "{nf4: {id: qbias, name: QBias}}"}, "quantizations"),
    "an unknown quantization": ({"quantizations": "{nf5: {id: qbias}}"}, "quantizations"),
    "a scheme that exists": (
        {"quantizations": "{nf4: {id: qlora, name: a, phrase: b, phrase_per_task: c, meaning: d}}"}, "quantizations"),
    "not YAML": ({"name": "a: b: c"}, "name"), "an alias": ({"name": "*other"}, "name"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_located(tmp_path, name, approved):
    """File, line and column, what is allowed and the nearest name."""
    changed, key = FAULTS[name]
    path = write_update(tmp_path, "bias", **changed)
    write_objective(tmp_path, "heart")
    with pytest.raises(InputError) as caught:
        of_own(tmp_path).check()
    approved(re.sub(r"lora\.yaml:[\d:]+", "lora.yaml", caught.value.text()))
    for fault in caught.value.faults:
        at = re.match(rf"{re.escape(str(path))}:(\d+):\d+: ", fault.headline)
        assert at, fault.headline
        assert int(at[1]) == line_of(path, key)


def test_all_faults_of_a_file_come_together(tmp_path, approved):
    """One reading tells everything that is wrong with a file."""
    wrong = {"trains_on": "[pears]", "reference": "evr", "logits": "tile", "ordr": "1"}
    write_objective(tmp_path, "heart", phrase=None, **wrong)
    with pytest.raises(InputError) as caught:
        of_own(tmp_path).check()
    approved(caught.value.text())


# The name of an update, and a file that is written besides.
ALONE = [
    # An empty file or a list is one fault, not one for each key that it lacks.
    *(("bias", "rules/updates/bias.yaml", text) for text in ("", "- 1\n", "hello\n")),
    # The project's own method stays what it is, whichever list the other file would be in.
    *((name, None, "") for name in ("lora", "sft", "qlora")),
    # Which of two files counts is never a matter of which folder comes first.
    ("bias", "estimate/methods/lora.py", "def trainable_params(run): ...\n"),
]


@pytest.mark.parametrize(("name", "other", "text"), ALONE)
def test_what_is_no_method_of_its_own_is_one_fault(tmp_path, name, other, text, approved):
    """With what is there already, or what a file has to be."""
    write_update(tmp_path, name)
    if other is not None:
        (tmp_path / other).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / other).write_text(text)
    (fault,) = of_own(tmp_path).faults
    approved(fault)


def test_the_faults_of_all_files_end_every_command(with_own_folder):
    """Each fault with its place."""
    update = write_update(with_own_folder, "bias", trains="modul")
    objective = write_objective(with_own_folder, "heart", trains_on="[pears]")
    with pytest.raises(InputError) as caught:
        methods().check()
    places = [fault.headline.partition(":")[0] for fault in caught.value.faults]
    assert places == [str(objective), str(update)]


def test_a_folder_without_methods_is_told(with_own_folder):
    """A name that is mistyped in ADVISE_METHODS is no silent nothing."""
    with pytest.raises(InputError, match=f"ADVISE_METHODS: {with_own_folder} adds nothing"):
        methods().check()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r"bias\.yaml:1:5: estimate/methods/own\.py has no function `trainable_params`"),
        ("import no_such_module\n", r"estimate/methods/own\.py: cannot be loaded: ModuleNotFound"),
        ("def x(:\n", r"estimate/methods/own\.py: cannot be loaded: SyntaxError"),
    ],
    ids=["no function", "no module", "no Python"],
)
def test_arithmetic_that_cannot_count_is_an_error_of_its_file(with_own_folder, text, said):
    """The estimate says which file lacks what; it never counts nothing."""
    write_update(with_own_folder, "bias", arithmetic="own")
    folder = with_own_folder / "estimate" / "methods"
    folder.mkdir(parents=True)
    (folder / "own.py").write_text(text)
    with pytest.raises(InputError, match=said):
        special(methods().update("bias"), "trainable_params")
    shape = model_shape("Qwen/Qwen3-0.6B")[0]
    lora = special(methods().update("lora"), "trainable_params")
    assert lora(run_of_spec({"update": "lora", "rank": 8}, shape)) > 0


@examples(3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_any_change_of_a_file_is_a_located_fault_or_fine(tmp_path_factory, data):
    """Something replaced, lost or doubled: never a traceback."""
    root = tmp_path_factory.mktemp("own")
    path = write_update(root, "bias", **WHOLE)
    path.write_text(data.draw(mangled(path.read_text())))
    found = of_own(root)
    assert ("bias" in found.updates) != bool(found.faults)
    assert all(fault.headline.startswith(f"{path}:") for fault in found.faults), found.faults


SHARED = "id: common\nabout: both\nkeys:\n  steps: {type: integer, min: 1}\n  parts: {type: entries, also: [steps], keys: {weight: {type: number}}}\n"


def write_shared(root, text=SHARED):
    path = root / "rules" / "keys" / "common.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(text)


def test_methods_share_the_keys_of_one_file(tmp_path):
    """Two methods have the keys of the file that they name, each as its owner."""
    write_shared(tmp_path)
    for name in ("heart", "lung"):
        write_objective(tmp_path, name, keys=None, shares="[common]")
    found = of_own(tmp_path)
    for name in ("heart", "lung"):
        keys = found.objective(name).keys
        assert (list(keys), keys["parts"].owner) == (["steps", "parts"], f"objective {name}")
        assert keys["parts"].accepts([{"steps": 2, "weight": 0.5}])
        assert not any(keys["parts"].accepts([bad]) for bad in ({"steps": 0}, {"weigt": 0.5}))


@pytest.mark.parametrize(
    ("shares", "text"),
    [
        ("[comon]", SHARED),
        ("[common]", SHARED.replace("type: integer", "type: interger")),
        ("[common]", SHARED.replace("also: [steps]", "also: [stepz]")),
        ("[common]", SHARED.replace("steps:", "own:", 1).replace("[steps]", "[own]")),
    ],
    ids=["no file", "type", "also", "declared twice"],
)
def test_a_fault_of_shared_keys_is_located(shares, text, tmp_path, approved):
    """It is located in the file where it stands."""
    write_shared(tmp_path, text)
    write_objective(tmp_path, "heart", keys="{own: {type: boolean}}", shares=shares)
    approved([fault.lines() for fault in of_own(tmp_path).faults])


@pytest.mark.parametrize("why", ["", "no hub"])
def test_what_a_kernel_needs_is_said(monkeypatch, approved, why):
    """Its GPUs, and what has to be installed where neither its package nor the hub is there."""
    monkeypatch.setattr(kernels, "is_installed", lambda module: False)
    monkeypatch.setattr(kernels, "why_no_hub", lambda: why)
    flash = (f"flash_attention_{number}" for number in (2, 3, 4))
    found = {name: kernels.kernel(name) for name in (*flash, "flex_attention", "liger")}
    approved({k: [one.needs, one.why_not_installed, one] for k, one in found.items() if one})


def reach(gpu: str, interconnect: str | None = None):
    return link_speeds(find_gpu(gpu).spec.link, interconnect)


@pytest.mark.parametrize(
    ("gpu", "bytes_per_s"),
    [
        # No peer-to-peer: about 5 GB/s, whatever the slot could do; a workstation card has it.
        ("RTX 4090", 4.7e9),
        ("RTX 5090", 4.7e9),
        ("RTX 3090", 4.7e9),
        ("RTX 6000 Ada", 0.63 * 31.5e9),
        # 300 GB/s in one direction, and 450.
        ("A100-SXM4-80GB", 0.69 * 300e9),
        ("H100 SXM", 0.69 * 450e9),
    ],
)
def test_a_link_is_as_fast_as_its_kind(gpu, bytes_per_s, approved):
    """GeForce cards reach each other through the host's memory; NVLink follows its generation."""
    assert reach(gpu).bytes_per_s == pytest.approx(bytes_per_s)
    said = (None, "PCIe 3 x4", "PCIe 4 x16", "NVLink", "NVLink 3 (2 active links per card)")
    approved([reach(gpu, link) for link in said])


def test_a_slot_is_as_fast_as_its_generation_and_lanes(approved):
    """A slot of one lane of PCIe 3 is slower than the host's memory; what the driver says counts."""
    assert reach("RTX 4090", "PCIe 3 x1").bytes_per_s < 1e9
    l4, half = reach("L4", "PCIe 4 x16"), reach("L4", "PCIe 3 x16")
    assert l4.bytes_per_s == pytest.approx(2 * half.bytes_per_s)
    assert reach("H100 SXM", "PCIe 5 x16").bytes_per_s < 50e9  # NVLink is there, but does not work
    approved([reach("RTX 4090"), l4, reach("A100-SXM4-80GB"), link_speeds(None)])


def test_a_bridge_counts_only_if_the_driver_reports_it_and_for_two_gpus(approved):
    """Two RTX 3090 with a bridge: 0.69 of 56 GB/s; a third GPU is reached over PCIe."""
    joined = reach("RTX 3090", "NVLink 3 bridge between two GPUs (4 active links per card)")
    assert joined.pair_bytes_per_s == pytest.approx(0.69 * 112.5e9 / 2)
    approved([reach("RTX 3090"), joined])


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
