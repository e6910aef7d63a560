"""A misspelt key is an error in every kind of file, with its place and the nearest known name."""

import re
import shutil
from functools import partial

import pytest

from advisor.advice.linting import read_scenarios, shipped_scenarios
from advisor.data.amounts import data_requirements
from advisor.data.formats import formats
from advisor.estimate.model.layouts import layouts
from advisor.estimate.spec import request_of
from advisor.extras.jobs.skypilot import skypilot_accelerators
from advisor.extras.other_tools.findings import shipped_rules
from advisor.extras.other_tools.script import table
from advisor.extras.other_tools.tool import TOOL_FILE
from advisor.ground import resources
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.yaml_files import read_shipped, read_yaml, shipped_sources
from advisor.methods import load as method_files
from advisor.methods import methods
from advisor.methods.engines import engines
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
from advisor.situation.catalogue import (
    named_file,
    organisation_models,
    suggested_models,
    typical_sizes,
)
from advisor.situation.names import scope_file
from advisor.situation.suggestions import template_families
from tests.conftest import ROOT

MODELINE = re.compile(r"# yaml-language-server: \$schema=.*/(\S+)\.schema\.json")
RULES = load_rules()
GUIDE = load_rules(("document",))


read_facts, read_rules = load_facts.__wrapped__, load_rules.__wrapped__  # anew
# the file, a key, where it stands in it, who reads it
SHIPPED = [
    ("hardware/nvidia-geforce.yaml", "bandwidth_gb_s", "    @: 336", catalogue_gpus),
    ("hardware/amd.yaml", "sold_gb", "memory: {@: 64,", catalogue_gpus),
    ("hardware/sources.yaml", "compiled", "@:", catalogue_gpus),
    ("tools/other_keys.yaml", "write", "], of: quantization, @:", lambda: other_keys.__wrapped__()),
    ("tools/trl.yaml", "checked", '@: "',
     lambda: read_shipped(rules_dir() / "tools/trl.yaml", shape=TOOL_FILE)),
    ("tools/engines.yaml", "formats", "      - @:", engines.__wrapped__),
    ("tools/findings.yaml", "severity", "    @: note", partial(shipped_rules.__wrapped__, "findings")),
    ("tools/scripts.yaml", "trainers", "@:", table.__wrapped__),
    ("clusters/skypilot.yaml", "accelerators", "@:", skypilot_accelerators.__wrapped__),
    ("refresh.yaml", "days", "@: 240",
     lambda: read_shipped(rules_dir() / "refresh.yaml", shape=REFRESH_FILE)),
    ("prices/free.yaml", "conditions", '@: "a Google', catalogue_gpus),
    ("hardware/not-supported.yaml", "where", "    @:", not_supported_devices.__wrapped__),
    ("layouts.yaml", "renamed", "families: [mixtral], @:", layouts.__wrapped__),
    ("families.yaml", "usual", "    @:", families_of_models.__wrapped__),
    ("strategies.yaml", "instead", "    @:", strategies.__wrapped__),
    ("optimizers.yaml", "holds", "    @:", optimizer_file.__wrapped__),
    ("trainers/torchtune.yaml", "shifts_labels", "  @:", trainers.__wrapped__),
    ("scope.yaml", "but_for", "    @:", scope_file.__wrapped__),
    ("hardware/accelerators.yaml", "in_4_bit", "    @:", accelerators.__wrapped__),
    ("hardware/links.yaml", "host_share", "    @:", link_file.__wrapped__),
    ("remedies/rag.yaml", "measure", "@:", lambda: remedy.__wrapped__("rag")),
    ("hardware/cuda.yaml", "driver_from", "@:", cuda_facts),
    ("prices/on-demand.yaml", "on_demand_usd_per_h", "@:", catalogue_gpus),
    ("prices/purchase.yaml", "source", "{value: 329, kind: msrp, @: msrp-3060}", catalogue_gpus),
    ("models/qwen.yaml", "hidden_size", "    @: 5120", lambda: organisation_models("qwen")),
    ("models/named.yaml", "asked", '1b", @: true', named_file),
    ("models/typical_sizes.yaml", "tied", "@: true", typical_sizes),
    ("models/suggestions.yaml", "params_b", "    @: 0.135", suggested_models),
    ("data/amounts.yaml", "too_few", "@: 16", data_requirements),
    ("data/formats.yaml", "shapes", "@: [turns]", formats.__wrapped__),
    ("verdict.yaml", "repeats", "@:", limits.__wrapped__),
    ("keys/rewards.yaml", "type", "@: entries", lambda: methods.__wrapped__().check()),
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
    ("objectives/dpo.yaml", "trains_on", "\n@:", lambda: methods.__wrapped__().check()),
    ("updates/lora.yaml", "merges", "\n@:", lambda: methods.__wrapped__().check()),
    ("updates/lora.yaml", "exclusive_min", "min: 0, @:", lambda: methods.__wrapped__().check()),
    ("updates/lora.yaml", "learning_rate", "{@: 2.0e-4}", lambda: methods.__wrapped__().check()),
    ("objectives/ppo.yaml", "keep", "\n  @:", lambda: methods.__wrapped__().check()),
    ("updates/prefix.yaml", "because", '@: "it drops', lambda: methods.__wrapped__().check()),
    ("updates/lora.yaml", "phrase_per_task", "    @:", lambda: methods.__wrapped__().check()),
    ("updates/lora.yaml", "confidence", "@: practice}", read_rules),
]  # fmt: skip
CACHED = (
    catalogue_gpus, cuda_facts, organisation_models, typical_sizes, named_file, suggested_models,
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
    path = own_rules / file
    text = path.read_text(encoding="utf-8")
    changed = text.replace(at.replace("@", key), at.replace("@", key[:-2] + key[-1]), 1)
    assert changed != text
    path.write_text(changed, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        read()
    lines = raised.value.text().splitlines()
    assert f"  did you mean '{key}'?" in lines
    (told,) = [line for line in lines if "unknown key" in line]
    line, column, name = re.fullmatch(
        rf"rules/{file}:(\d+):(\d+): unknown key '(\w+)'", told
    ).groups()
    assert changed.splitlines()[int(line) - 1][int(column) - 1 :].startswith(f"{name}:")


OTHERS = {
    "answers": (
        "task: qa\ndata: {row: 5}", "rows",
        lambda path: answers_from_document(read_yaml(path, name=path.name), load_facts()),
    ),
    "scenarios": (
        "scenarios: [{id: a, given: {}, why: us, compositon: rag}]", "composition",
        lambda path: read_scenarios(path, RULES),
    ),
    "rules": ("version: 1\ntabels: {}", "tables", lambda path: load_rules(overlays=(path,))),
    "plan": ("version: 1\nstage: []", "stages", read_plan),
}  # fmt: skip


def test_a_misspelt_key_of_a_run_spec_is_an_error():
    """It comes as a list of faults."""
    (fault,) = request_of({"model": "Qwen/Qwen3-8B", "micro_batch": 4}, at="mine.yaml")
    assert "unknown key" in fault.what
    assert "did you mean 'micro_batch_size'" in fault.hint


@pytest.mark.parametrize("kind", OTHERS)
def test_a_misspelt_key_of_a_users_file_is_an_error(tmp_path, kind):
    """So is each kind of file that people and scripts write."""
    text, key, read = OTHERS[kind]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"mine.yaml.*unknown key.*\n.*\n.*did you mean '{key}'"):
        read(path)


def test_every_kind_of_file_is_covered():
    """No kind of file under rules/ is left out."""
    texts = {path: path.read_text("utf-8") for path in (ROOT / "rules").rglob("*.yaml")}
    kinds = {path: MODELINE.match(text)[1] for path, text in texts.items()}
    assert len(kinds) > 60
    assert set(kinds.values()) == {kinds[ROOT / "rules" / file] for file, *_ in SHIPPED}


def test_faults_of_several_files_come_together(own_rules, call):
    """Whatever is wrong with GPUs and prices is told at once, and the exit code is 2."""
    geforce, spot = own_rules / "hardware/nvidia-geforce.yaml", own_rules / "prices/spot.yaml"
    wrong = geforce.read_text().count("tdp_w: 250")
    geforce.write_text(geforce.read_text().replace("tdp_w: 250", "tdp_w: lots"))
    spot.write_text(spot.read_text().replace("nvidia-t4: {azure", "nvidia-t5: {azur"))
    code, _, text = call("--json", "--task", "qa", "--gpu", "RTX 4090")
    assert (code, text.count("`tdp_w` is 'lots'")) == (2, wrong)
    assert "rules/prices/spot.yaml:7:3: unknown GPU 'nvidia-t5'" in text
    assert "unknown provider 'azur'" in text
