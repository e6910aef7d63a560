"""Files of methods: every fault is located."""

import re

import pytest
from hypothesis import HealthCheck, given
from hypothesis import strategies as st
from msgspec import structs

from advisor.estimate import methods as arithmetic
from advisor.estimate.methods import special
from advisor.estimate.spec import run_of_spec
from advisor.ground.errors import InputError
from advisor.ground.resources import resource_root
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
