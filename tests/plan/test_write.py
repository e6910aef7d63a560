"""Plans are written short, with reasons, and read back as they were."""

import os
import shlex
import string

import pytest
import yaml
from hypothesis import HealthCheck, assume, given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.ground.errors import MachineNotReady
from advisor.ground.extras import extras
from advisor.ground.resources import resource_root
from advisor.ground.terminal import find_secrets
from advisor.ground.yaml_files import parse_yaml
from advisor.plan.model import Launch, Origin, Plan, PlanData, Stage, Task
from advisor.plan.read import plan_from_data
from advisor.plan.write import plan_data, plan_digest, plan_text, write_plan_file
from tests.conftest import examples

STAGE = Stage(
    name="sft", objective="sft", update="lora", quantization="nf4", learning_rate=2e-5, epochs=2,
    micro_batch_size=4, options={"rank": 16, "alpha": 32},
)  # fmt: skip
PLAN = Plan(
    name="shop",
    model="Qwen/Qwen3-8B",
    data=PlanData(path="train.jsonl"),
    stages=(STAGE,),
    launch=Launch(device="cuda"),
    origin=Origin(composition="sft+qlora"),
)

names = st.from_regex(r"\A[a-z0-9][a-z0-9_-]{0,12}\Z")
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30).filter(str.strip)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63), texts, st.just(""),
    st.floats(allow_nan=False, allow_infinity=False),
)  # fmt: skip
keys = texts.filter(lambda key: key != "<<")
nested = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3),
    max_leaves=8,
)
OURS = {*Stage.__struct_fields__, "output_dir", "rank", "alpha", "loss_on", "target_modules"}
maps = st.dictionaries(keys.filter(lambda key: key not in OURS), nested, max_size=3)
data_values = st.builds(
    PlanData,
    path=texts,
    format=st.none() | texts,
    mapping=st.none() | st.dictionaries(keys, texts, max_size=2),
)


@st.composite
def stages(draw, name):
    update = draw(st.sampled_from(["full", "lora"]))
    quantization = draw(st.sampled_from([None, "nf4"])) if update == "lora" else None
    options = {"loss_on": st.sampled_from(["answers", "all"])}
    if update == "lora":
        options |= {
            "rank": st.integers(1, 4096),
            "alpha": st.none() | st.floats(0.001, 1e6),
            "target_modules": texts | st.lists(texts, min_size=1, max_size=3),
        }
    return Stage(
        name=name,
        objective="sft",
        update=update,
        quantization=quantization,
        double_quantization=draw(st.none() | st.booleans()) if quantization else None,
        learning_rate=draw(st.floats(1e-12, 1)),
        epochs=draw(st.floats(1e-3, 1e4)),
        max_steps=draw(st.none() | st.integers(1, 10**9)),
        scheduler=draw(st.sampled_from(["linear", "cosine"])),
        warmup=draw(st.floats(0, 0.99)),
        seq_len=draw(st.integers(8, 10**6)),
        packing=draw(st.booleans()),
        seed=draw(st.integers(0, 2**32 - 1)),
        trl=draw(maps),
        peft=draw(maps) if update == "lora" else {},
        options=draw(st.fixed_dictionaries({}, optional=options)),
    )


VALUES = {  # of the keys of optional features
    "hub": {"push_to": st.sampled_from(["mia/shop", "shop-team/a.b_c-1"])},
    "trackers": {
        "trackers": st.lists(
            st.sampled_from(["tensorboard", "wandb"]), min_size=1, unique=True
        ).map(tuple)
    },
}
EXTRAS = {
    name: st.builds(extras()[name].KEYS, **keys)
    for name, keys in VALUES.items()
    if name in extras()
}


@st.composite
def plans(draw):
    tasks = draw(st.lists(data_values, max_size=2))
    launched = {"device": "cuda", "processes": 2}
    return Plan(
        name=draw(names),
        model=draw(texts),
        revision=draw(st.none() | texts),
        trust_remote_code=draw(st.booleans()),
        extras=draw(st.fixed_dictionaries({}, optional=EXTRAS)),
        data=None if tasks else draw(data_values),
        tasks=tuple(Task(name=f"t{index}", data=one) for index, one in enumerate(tasks)),
        stages=tuple(draw(stages(f"s{index}")) for index in range(draw(st.integers(1, 2)))),
        launch=draw(
            st.sampled_from(
                [Launch(), *(Launch(**launched, strategy=one) for one in (None, "ddp", "fsdp"))]
            )
        ),
        origin=Origin(
            composition=draw(st.none() | texts),
            answers=draw(st.dictionaries(keys, nested, max_size=2)),
            hardware=draw(st.none() | texts),
        ),
    )


@examples(3, suppress_health_check=[HealthCheck.too_slow])
@given(plan=plans(), comment=st.text(max_size=40))
def test_plan_to_yaml_to_plan_is_lossless(plan, comment):
    """Any valid plan, with any comment, reads back equal, and PyYAML reads the same data."""
    text = plan_text(plan, {("stages", 0, "learning_rate"): comment, ("model",): comment})
    assume(not any(find_secrets(yaml.safe_load(text))))  # a plan with one is refused
    assert plan_from_data(parse_yaml(text, name="plan.yaml")) == plan
    assert yaml.safe_load(text)["stages"][0]["learning_rate"] == plan.stages[0].learning_rate


def test_a_plan_is_short_and_carries_its_reasons():
    """Reasons in one column, no unchosen defaults, no place on this machine."""
    comments = {
        ("stages", 0, "update"): "small module (document/scenario-5)",
        ("stages", 0, "options", "rank"): "few rows (lora/rank)",
        ("stages", 0, "packing"): "rows are long anyway",
    }
    text = plan_text(PLAN, comments)
    first, *lines = text.splitlines()
    assert "advise run plan.yaml" in first
    for absent in ("file:", str(resource_root()), "grad_accum", "seed"):
        assert absent not in text
    columns = {line.split("#")[0].strip("- "): line.index("#") for line in lines if "#" in line}
    assert set(columns) == {"update: lora", "rank: 16", "packing: false"}
    assert len(set(columns.values())) == 1
    assert "learning_rate: 2.0e-05" in text
    assert len(lines) < 30


@pytest.mark.parametrize("name", ["plän 1.yaml", "it's.yaml", "a;b.yaml"])
def test_the_line_that_starts_a_plan_can_be_pasted(name):
    """The header names the file as a shell takes it, on one line."""
    line = plan_text(PLAN, name=name).splitlines()[0].split("with: ")[1]
    assert shlex.split(line) == ["advise", "run", name]


def of_stage(**keys):
    """The plan with other keys of its stage; `options` come on top."""
    options = STAGE.options | keys.pop("options", {})
    return replace(PLAN, stages=(replace(STAGE, **keys, options=options),))


def test_the_digest_names_model_data_and_stages_alone():
    """Name, launch, origin and defaults do not count; any trained value does."""
    first = plan_digest(PLAN)
    for same in (
        replace(PLAN, name="other", launch=Launch(), origin=Origin()),
        of_stage(options={"target_modules": "all-linear"}),
        of_stage(epochs=2.0),
    ):
        assert plan_digest(same) == first
    changed = [
        replace(PLAN, model="other"),
        replace(PLAN, revision="main"),
        replace(PLAN, data=PlanData(path="b.jsonl")),
        of_stage(seed=1),
        of_stage(options={"rank": 8}),
    ]
    assert len({first, *map(plan_digest, changed)}) == 1 + len(changed)


def test_writing_is_all_or_nothing(tmp_path, monkeypatch):
    """On a full disk the old file stays, and the error ends with exit code 4."""
    path = tmp_path / "plan.yaml"
    write_plan_file(PLAN, {}, path)
    before = path.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(MachineNotReady, match="no space left"):
        write_plan_file(replace(PLAN, name="other"), {}, path, force=True)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["plan.yaml"]


TRICKY = [
    "yes", "No", "null", "1e5", "0x1f", "1:30", "~", "-", "a: b", "a #b", "", " x", "2024-01-01",
    ".5", "...", "*x", "\u2028", string.punctuation,
]  # fmt: skip


def test_text_that_looks_like_something_else_is_quoted():
    """Names that YAML readers would take for true, null or numbers come back as text."""
    answers = {text or "empty": text for text in TRICKY}
    plan = replace(PLAN, origin=Origin(answers=answers))
    text = plan_text(plan)
    assert plan_from_data(parse_yaml(text, name="p")).origin == plan.origin
    assert yaml.safe_load(text)["origin"]["answers"] == answers
    assert plan_data(plan)["origin"]["answers"] == answers
