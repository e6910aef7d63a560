"""A misspelt key is an error in every kind of file, with its place and the nearest known name."""

import re
import shutil
from pathlib import Path

import pytest

from advisor.advice.linting import read_scenarios, shipped_scenarios
from advisor.data.amounts import data_requirements
from advisor.data.formats import formats
from advisor.estimate.model.layouts import layouts
from advisor.estimate.spec import request_of
from advisor.extras.jobs.skypilot import skypilot_accelerators
from advisor.extras.other_tools.findings import general_rules
from advisor.extras.other_tools.tool import TOOL_FILE
from advisor.ground import resources
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import parse_yaml, read_shipped, shipped_sources
from advisor.methods import load as method_files
from advisor.methods import methods
from advisor.methods.families import families as families_of_models
from advisor.methods.kernels import accelerators
from advisor.methods.links import link_file
from advisor.methods.optimizers import optimizer_file
from advisor.methods.other_keys import other_keys
from advisor.methods.remedies import remedy
from advisor.methods.rewards import rollout_warnings
from advisor.methods.strategies import strategies
from advisor.methods.trainers import trainers
from advisor.plan.read import read_plan
from advisor.probe.gpu_files import catalogue_gpus, cuda_facts, not_supported_devices
from advisor.record.verdict import limits
from advisor.ruleset.facts import load_facts
from advisor.ruleset.lint import REFRESH_FILE
from advisor.ruleset.load import load_rules
from advisor.situation.answers import answers_from_document
from advisor.situation.catalogue import organisation_models, suggested_models, typical_sizes
from advisor.situation.names import scope_file
from advisor.situation.suggestions import template_families

ROOT = Path(__file__).resolve().parent.parent
MODELINE = re.compile(r"# yaml-language-server: \$schema=.*/(\S+)\.schema\.json")
RULES = load_rules()
GUIDE = load_rules(("document",))


def read_facts():
    """The facts, read anew."""
    return load_facts.__wrapped__()


def read_rules():
    """The rules, read anew."""
    return load_rules.__wrapped__()


def read_methods():
    """The methods, read anew."""
    return methods.__wrapped__().check()


def read_refresh():
    """How old facts may get, read anew."""
    return read_shipped(rules_dir() / "refresh.yaml", shape=REFRESH_FILE)


# kind of file -> the file, a line as it is, the same misspelt, the key's name, who reads it
SHIPPED = {
    "GPUs": (
        "hardware/nvidia-geforce.yaml", "    bandwidth_gb_s: 336", "    bandwith_gb_s: 336",
        "bandwidth_gb_s", catalogue_gpus,
    ),
    "memory of a GPU": (
        "hardware/amd.yaml", "memory: {sold_gb: 64,", "memory: {sold_bg: 64,", "sold_gb",
        catalogue_gpus,
    ),
    "GPU sources": (
        "hardware/sources.yaml", "compiled:", "complied:", "compiled", catalogue_gpus,
    ),
    "keys of other tools": (
        "tools/other_keys.yaml", "], of: quantization, write:", "], of: quantization, wriet:",
        "write", lambda: other_keys.__wrapped__(),
    ),
    "another tool": (
        "tools/trl.yaml", 'checked: "', 'chekced: "', "checked",
        lambda: read_shipped(rules_dir() / "tools" / "trl.yaml", shape=TOOL_FILE),
    ),
    "findings about files of tools": (
        "tools/findings.yaml", "    severity: note", "    severty: note", "severity",
        general_rules.__wrapped__,
    ),
    "names of SkyPilot": (
        "clusters/skypilot.yaml", "accelerators:", "acelerators:", "accelerators",
        skypilot_accelerators.__wrapped__,
    ),
    "ages of facts": ("refresh.yaml", "days: 240", "day: 240", "days", read_refresh),
    "free GPUs": (
        "prices/free.yaml", "conditions: \"a Google", "condition: \"a Google", "conditions",
        catalogue_gpus,
    ),
    "devices that are no GPUs": (
        "hardware/not-supported.yaml", "    where:", "    were:", "where",
        not_supported_devices.__wrapped__,
    ),
    "layouts of models": (
        "layouts.yaml", "families: [mixtral], renamed:", "families: [mixtral], renamd:", "renamed",
        layouts.__wrapped__
    ),
    "families of models": (
        "families.yaml", "    usual:", "    usaul:", "usual", families_of_models.__wrapped__
    ),
    "strategies": (
        "strategies.yaml", "    instead:", "    insted:", "instead", strategies.__wrapped__
    ),
    "optimizers": (
        "optimizers.yaml", "    holds:", "    hods:", "holds", optimizer_file.__wrapped__
    ),
    "trainers": (
        "trainers/torchtune.yaml", "  fused_norms:", "  fused_norm:", "fused_norms",
        trainers.__wrapped__,
    ),
    "models out of scope": (
        "scope.yaml", "    but_for:", "    but_fro:", "but_for", scope_file.__wrapped__
    ),
    "GPUs never tried": (
        "hardware/accelerators.yaml", "    in_4_bit:", "    in_4_bits:", "in_4_bit",
        accelerators.__wrapped__,
    ),
    "links between GPUs": (
        "hardware/links.yaml", "    host_share:", "    host_shere:", "host_share", link_file.__wrapped__,
    ),
    "remedies": (
        "remedies/rag.yaml", "measure:", "meassure:", "measure", lambda: remedy.__wrapped__("rag"),
    ),
    "CUDA": ("hardware/cuda.yaml", "driver_from:", "driver_form:", "driver_from", cuda_facts),
    "prices": (
        "prices/on-demand.yaml", "on_demand_usd_per_h:", "on_demand_usd_per_hour:",
        "on_demand_usd_per_h", catalogue_gpus,
    ),
    "purchase prices": (
        "prices/purchase.yaml", "{value: 329, kind: msrp, source: msrp-3060}",
        "{value: 329, kind: msrp, soruce: msrp-3060}", "source", catalogue_gpus,
    ),
    "models": (
        "models/qwen.yaml", "    hidden_size: 5120", "    hiden_size: 5120", "hidden_size",
        lambda: organisation_models("qwen"),
    ),
    "sizes": ("models/typical_sizes.yaml", "tied: true", "teid: true", "tied", typical_sizes),
    "suggestions": (
        "models/suggestions.yaml", "    params_b: 0.135", "    param_b: 0.135", "params_b",
        suggested_models,
    ),
    "amounts of data": (
        "data/amounts.yaml", "too_few: 16", "to_few: 16", "too_few", data_requirements,
    ),
    "formats of data": (
        "data/formats.yaml", "shapes: [turns]", "shaped: [turns]", "shapes", formats.__wrapped__,
    ),
    "the verdict": ("verdict.yaml", "repeats:", "repeat:", "repeats", limits.__wrapped__),
    "keys of several methods": (
        "keys/rewards.yaml", "type: entries", "typ: entries", "type", read_methods,
    ),
    "warnings about rollouts": (
        "data/rollouts.yaml", "limit: 0.3", "limt: 0.3", "limit", rollout_warnings,
    ),
    "chat templates": ("data/templates.yaml", "tools: false", "tolls: false", "tools", template_families),
    "sources": ("sources.yaml", "kind: document}", "knid: document}", "kind", shipped_sources.__wrapped__),
    "scenarios": (
        "scenarios/document.yaml", "composition:", "compositoin:", "composition",
        lambda: shipped_scenarios(GUIDE),
    ),
    "facts": ("facts.yaml", "    origin: asked", "    orgin: asked", "origin", read_facts),
    "values of a fact": (
        "facts.yaml", "{label: Write code, help:", "{label: Write code, hlep:", "help", read_facts,
    ),
    "assumptions": ("facts.yaml", "\n    never:", "\n    nevr:", "never", read_facts),
    "tables": (
        "tables.yaml", "concludes: readiness", "conclude: readiness", "concludes", read_rules,
    ),
    "a layer": ("evidence/when-to-train.yaml", "\ntables:", "\ntabels:", "tables", read_rules),
    "a rule": ("document/guide.yaml", "  because:", "  becuase:", "because", read_rules),
    "an example": ("document/guide.yaml", "fires: true", "fire: true", "fires", read_rules),
    "the guide's comparison": (
        "document/methods.yaml", "performance: 5", "perfomance: 5", "performance", read_rules,
    ),
    "an objective": (
        "objectives/dpo.yaml", "\ntrains_on:", "\ntrain_on:", "trains_on", read_methods,
    ),
    "an update": ("updates/lora.yaml", "\nmerges:", "\nmerge:", "merges", read_methods),
    "keys of a method": (
        "updates/lora.yaml", "min: 0, exclusive_min:", "min: 0, exclusve_min:", "exclusive_min",
        read_methods,
    ),
    "defaults of a method": (
        "updates/lora.yaml", "{learning_rate: 2.0e-4}", "{learning_rat: 2.0e-4}", "learning_rate",
        read_methods,
    ),
    "what a method ignores": ("objectives/ppo.yaml", "\n  keep:", "\n  kep:", "keep", read_methods),
    "what a method refuses": (
        "updates/prefix.yaml", 'because: "it drops', 'becuase: "it drops', "because", read_methods,
    ),
    "a scheme of an update": (
        "updates/lora.yaml", "    phrase_per_task:", "    phrase_per_tsk:", "phrase_per_task",
        read_methods,
    ),
    "a rule of a method": (
        "updates/lora.yaml", "confidence: practice}", "confidense: practice}", "confidence",
        read_rules,
    ),
}  # fmt: skip
CACHED = (
    catalogue_gpus, cuda_facts, organisation_models, typical_sizes, suggested_models,
    data_requirements, resources.method_roots, rollout_warnings, template_families, shipped_sources,
)  # fmt: skip


@pytest.fixture
def own_rules(tmp_path, monkeypatch):
    """A copy of rules/ that a test may change."""
    shutil.copytree(ROOT / "rules", tmp_path / "rules")
    for module in (resources, method_files):
        monkeypatch.setattr(module, "resource_root", lambda: tmp_path)
    for read in CACHED:
        read.cache_clear()
    yield tmp_path / "rules"
    for read in CACHED:
        read.cache_clear()


@pytest.mark.parametrize("kind", SHIPPED)
def test_a_misspelt_key_of_a_shipped_file_is_an_error(own_rules, kind):
    """Each kind of file under rules/ is refused, at the key, with the name that was meant."""
    file, right, wrong, key, read = SHIPPED[kind]
    text = (own_rules / file).read_text(encoding="utf-8")
    changed = text.replace(right, wrong, 1)
    assert changed != text
    (own_rules / file).write_text(changed, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read()
    lines = raised.value.text().splitlines()
    (told,) = [line for line in lines if "unknown key" in line]
    found = re.fullmatch(rf"rules/{file}:(\d+):(\d+): unknown key '(\w+)'", told)
    assert f"  did you mean '{key}'?" in lines
    line, column = int(found[1]), int(found[2])
    assert changed.splitlines()[line - 1][column - 1 :].startswith(f"{found[3]}:")


def read_text(kind, text, folder):
    """Whatever reads this kind of file or text."""
    path = folder / "mine.yaml"
    path.write_text(text)
    match kind:
        case "answers":
            answers_from_document(parse_yaml(text, name="mine.yaml"), load_facts())
        case "scenarios":
            read_scenarios(path, RULES)
        case "rules":
            load_rules(overlays=(path,))
        case "plan":
            read_plan(path)
        case "run spec":
            raise InputError(faults=request_of(parse_yaml(text, name="").data, at="mine.yaml"))


OTHERS = {
    "answers": ("task: qa\ndata: {row: 5}", "rows"),
    "scenarios": ("scenarios: [{id: a, given: {}, why: us, compositon: rag}]", "composition"),
    "rules": ("version: 1\ntabels: {}", "tables"),
    "plan": ("version: 1\nstage: []", "stages"),
    "run spec": ("{model: Qwen/Qwen3-8B, micro_batch: 4}", "micro_batch_size"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_a_misspelt_key_of_a_users_file_is_an_error(tmp_path, kind):
    """So is each kind of file that people and scripts write."""
    text, key = OTHERS[kind]
    with pytest.raises(InputError, match=rf"mine.yaml.*unknown key.*\n.*\n.*did you mean '{key}'"):
        read_text(kind, text, tmp_path)


def test_every_kind_of_file_is_covered():
    """No kind of file under rules/ is left out."""
    kinds = {
        path: MODELINE.match(path.read_text(encoding="utf-8"))[1]
        for path in (ROOT / "rules").rglob("*.yaml")
    }
    covered = {kinds[ROOT / "rules" / file] for file, *_ in SHIPPED.values()}
    assert len(kinds) > 60
    assert set(kinds.values()) == covered


def test_faults_of_several_files_come_together(own_rules, call):
    """Whatever is wrong with GPUs and prices is told at once, and the exit code is 2."""
    geforce, spot = own_rules / "hardware/nvidia-geforce.yaml", own_rules / "prices/spot.yaml"
    wrong = geforce.read_text().count("tdp_w: 250")
    geforce.write_text(geforce.read_text().replace("tdp_w: 250", "tdp_w: lots"))
    spot.write_text(spot.read_text().replace("nvidia-t4: {azure", "nvidia-t5: {azur"))
    code, _, text = call("--json", "--task", "qa", "--gpu", "RTX 4090")
    assert code == 2
    assert text.count("`tdp_w` is 'lots'") == wrong
    assert "rules/prices/spot.yaml:7:3: unknown GPU 'nvidia-t5'" in text
    assert "unknown provider 'azur'" in text
