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


def read_tool():
    """A file about another tool."""
    return read_shipped(rules_dir() / "tools" / "trl.yaml", shape=TOOL_FILE)


# the file, a key, where it stands in it, who reads it
SHIPPED = [
    ("hardware/nvidia-geforce.yaml", "bandwidth_gb_s", "    @: 336", catalogue_gpus),
    ("hardware/amd.yaml", "sold_gb", "memory: {@: 64,", catalogue_gpus),
    ("hardware/sources.yaml", "compiled", "@:", catalogue_gpus),
    ("tools/other_keys.yaml", "write", "], of: quantization, @:", lambda: other_keys.__wrapped__()),
    ("tools/trl.yaml", "checked", '@: "', read_tool),
    ("tools/findings.yaml", "severity", "    @: note", general_rules.__wrapped__),
    ("clusters/skypilot.yaml", "accelerators", "@:", skypilot_accelerators.__wrapped__),
    ("refresh.yaml", "days", "@: 240", read_refresh),
    ("prices/free.yaml", "conditions", '@: "a Google', catalogue_gpus),
    ("hardware/not-supported.yaml", "where", "    @:", not_supported_devices.__wrapped__),
    ("layouts.yaml", "renamed", "families: [mixtral], @:", layouts.__wrapped__),
    ("families.yaml", "usual", "    @:", families_of_models.__wrapped__),
    ("strategies.yaml", "instead", "    @:", strategies.__wrapped__),
    ("optimizers.yaml", "holds", "    @:", optimizer_file.__wrapped__),
    ("trainers/torchtune.yaml", "fused_norms", "  @:", trainers.__wrapped__),
    ("scope.yaml", "but_for", "    @:", scope_file.__wrapped__),
    ("hardware/accelerators.yaml", "in_4_bit", "    @:", accelerators.__wrapped__),
    ("hardware/links.yaml", "host_share", "    @:", link_file.__wrapped__),
    ("remedies/rag.yaml", "measure", "@:", lambda: remedy.__wrapped__("rag")),
    ("hardware/cuda.yaml", "driver_from", "@:", cuda_facts),
    ("prices/on-demand.yaml", "on_demand_usd_per_h", "@:", catalogue_gpus),
    ("prices/purchase.yaml", "source", "{value: 329, kind: msrp, @: msrp-3060}", catalogue_gpus),
    ("models/qwen.yaml", "hidden_size", "    @: 5120", lambda: organisation_models("qwen")),
    ("models/typical_sizes.yaml", "tied", "@: true", typical_sizes),
    ("models/suggestions.yaml", "params_b", "    @: 0.135", suggested_models),
    ("data/amounts.yaml", "too_few", "@: 16", data_requirements),
    ("data/formats.yaml", "shapes", "@: [turns]", formats.__wrapped__),
    ("verdict.yaml", "repeats", "@:", limits.__wrapped__),
    ("keys/rewards.yaml", "type", "@: entries", read_methods),
    ("data/rollouts.yaml", "limit", "@: 0.3", rollout_warnings),
    ("data/templates.yaml", "tools", "@: false", template_families),
    ("sources.yaml", "kind", "@: document}", shipped_sources.__wrapped__),
    ("scenarios/document.yaml", "composition", "@:", lambda: shipped_scenarios(GUIDE)),
    ("facts.yaml", "origin", "    @: asked", read_facts),
    ("facts.yaml", "help", "{label: Write code, @:", read_facts),
    ("facts.yaml", "never", "\n    @:", read_facts),
    ("tables.yaml", "concludes", "@: readiness", read_rules),
    ("evidence/when-to-train.yaml", "tables", "\n@:", read_rules),
    ("document/guide.yaml", "because", "  @:", read_rules),
    ("document/guide.yaml", "fires", "@: true", read_rules),
    ("document/methods.yaml", "performance", "@: 5", read_rules),
    ("objectives/dpo.yaml", "trains_on", "\n@:", read_methods),
    ("updates/lora.yaml", "merges", "\n@:", read_methods),
    ("updates/lora.yaml", "exclusive_min", "min: 0, @:", read_methods),
    ("updates/lora.yaml", "learning_rate", "{@: 2.0e-4}", read_methods),
    ("objectives/ppo.yaml", "keep", "\n  @:", read_methods),
    ("updates/prefix.yaml", "because", '@: "it drops', read_methods),
    ("updates/lora.yaml", "phrase_per_task", "    @:", read_methods),
    ("updates/lora.yaml", "confidence", "@: practice}", read_rules),
]  # fmt: skip
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


@pytest.mark.parametrize(
    ("file", "key", "at", "read"), SHIPPED, ids=[f"{file}-{key}" for file, key, *_ in SHIPPED]
)
def test_a_misspelt_key_of_a_shipped_file_is_an_error(own_rules, file, key, at, read):
    """Each kind of file under rules/ is refused, at the key, with the name that was meant."""
    text = (own_rules / file).read_text(encoding="utf-8")
    wrong = at.replace("@", key[:-2] + key[-1])
    changed = text.replace(at.replace("@", key), wrong, 1)
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
    covered = {kinds[ROOT / "rules" / file] for file, *_ in SHIPPED}
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
