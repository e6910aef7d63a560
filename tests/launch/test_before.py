"""What is said or refused before a run starts: downloads, licences, machines, damaged models, data."""

import json
import os
import re
import shutil
import time
from functools import cache, partial
from http.server import HTTPServer, SimpleHTTPRequestHandler
from importlib import import_module
from threading import Thread
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.commands.wizard import check_machine
from advisor.data import read_examples
from advisor.data.templates.tokenizer import has_template
from advisor.ground.errors import InputError, MachineNotReady
from advisor.ground.files import shown_path
from advisor.ground.yaml_files import parse_yaml
from advisor.launch import hub as hub_module
from advisor.launch.data import check_data
from advisor.launch.hub import ModelNeed, ask_hub
from advisor.launch.prepare import Options, prepare_plan
from advisor.methods import objectives
from advisor.model_files.config import config_faults
from advisor.model_files.folder import INDEX, WEIGHTS, model_faults
from advisor.model_files.hub_cache import has_weights
from advisor.model_files.made import MADE, made_here
from advisor.plan.entries import entries
from advisor.plan.model import Plan, Stage
from advisor.plan.read import PlanOnDisk, plan_from_data, read_plan
from advisor.record.next_step import trial_steps
from advisor.situation.catalogue import catalogue_ids, organisation_models
from tests.conftest import examples
from tests.fake_model import llama_tensors, write_fake_model, write_safetensors
from tests.launch.conftest import (
    CONFIG,
    FULL,
    GIB,
    MACHINE,
    PLAN,
    RANK,
    SECOND,
    chat,
    gpu,
    machine,
    refused,
    run,
    write_rows,
)

ANSWER = {
    "gated": False,
    "cardData": {"license": "apache-2.0"},
    "siblings": [
        {"rfilename": name, "size": size}
        for name, size in (
            ("config.json", 600), ("model-1.safetensors", 3 * GIB), ("model-2.safetensors", GIB),
            ("tokenizer.json", 400), ("original/consolidated.pth", 99 * GIB),
            ("model.bin", 50 * GIB), ("README.md", 5000),
        )
    ],
}  # fmt: skip


@pytest.fixture
def no_cache(shop, monkeypatch):
    """An empty cache of hub models, and no login."""
    monkeypatch.setenv("HF_HOME", str(shop / "hub"))
    for name in ("HF_HUB_CACHE", "HF_TOKEN", "HF_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def hub(shop, monkeypatch, no_cache):
    """A hub of this test, its answer about the plan's model, and what hears each question."""
    heard = Mock()
    monkeypatch.setattr(SimpleHTTPRequestHandler, "log_message", heard)
    answering = partial(SimpleHTTPRequestHandler, directory=shop / "web")
    server = HTTPServer(("127.0.0.1", 0), answering)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: org/tiny"))
    answer = shop / "web" / "api" / "models" / "org" / "tiny"
    answer.parent.mkdir(parents=True)
    answer.write_text(json.dumps(ANSWER))
    yield SimpleNamespace(answer=answer, heard=heard)
    server.shutdown()
    server.server_close()


def said_by_run(**options):
    """The lines of a run."""
    lines = []
    run(say=lines.append, **options)
    return "\n".join(lines)


UNKNOWN = "download of unknown size, licence not known: see https://huggingface.co/org/tiny"


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        # Of the repository's files only those that are read count.
        (ANSWER, "4.0 GiB to download (the hub), licence apache-2.0 (the hub)"),
        # A mirror that answers with something else.
        ([], UNKNOWN),
        ({"siblings": "x", "cardData": 7, "tags": [3]}, UNKNOWN),
    ],
)
def test_a_run_says_what_it_downloads_and_under_which_licence(hub, answer, line):
    """And what it needs on which disk."""
    hub.answer.write_text(json.dumps(answer))
    said = said_by_run()
    assert re.search(rf"(?m)^model org/tiny: {re.escape(line)}", said)
    assert re.search(r"(?m)^model cache: .* on its disk$", said)
    assert re.search(r"(?m)^disk: up to .* free$", said)
    assert line in said_by_run(dry_run=True)


def test_a_gated_model_is_told_before_anything_starts(hub, shop, monkeypatch, approved):
    """Without a login exit 4 with the two steps; with one it starts."""
    gated = {**ANSWER, "gated": "manual", "cardData": {"license": "llama3.1"}}
    hub.answer.write_text(json.dumps(gated))
    approved(refused(MachineNotReady, output="out"))
    assert not (shop / "out").exists()
    monkeypatch.setenv("HF_TOKEN", "some-token")
    said = said_by_run()
    assert "to be accepted at https://huggingface.co/org/tiny" in said
    assert "some-token" not in said


def test_a_full_disk_of_the_cache_is_told_before_the_download(hub, shop, monkeypatch, approved):
    """Both numbers are named, and what else the same disk must hold."""
    monkeypatch.setattr("advisor.launch.checks.disk.free_bytes", lambda path: 2 * GIB)
    text = refused(MachineNotReady, output="out")
    approved(re.sub(r"4\.[2-5] GiB needed|0\.\d\d GiB for results", "N", text))
    assert not (shop / "out").exists()


def test_a_cached_model_asks_nobody(hub, shop):
    """The hub is not asked once the weights are cached; a configuration alone is not the model."""
    snapshot = shop / "hub/hub/models--org--tiny/snapshots/abc"
    write_fake_model(snapshot, CONFIG)
    said = said_by_run()
    assert "in the model cache already, nothing to download" in said
    assert "\nmodel cache:" not in f"\n{said}"
    assert not hub.heard.called
    (snapshot / "model.safetensors").unlink()
    assert not has_weights("org/tiny", None)
    assert "4.0 GiB to download (the hub)" in said_by_run(output="other")
    index = {"weight_map": {"a": "one.safetensors", "b": "two.safetensors"}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    for name, is_whole in (("one", False), ("two", True)):
        (snapshot / f"{name}.safetensors").write_bytes(b"")
        assert has_weights("org/tiny", None) is is_whole


def test_a_hub_that_does_not_help_is_told(hub, shop, monkeypatch):
    """A wrong name or missing login is bad input; an unreachable hub is exit code 4, in seconds.
    Both name the models that may be meant and the way without a connection."""
    hub.answer.unlink()
    (shop / "plan.yaml").write_text(PLAN.replace("model: model", "model: Qwen/Qwen3-8X"))
    text = refused(output="out")
    assert "no such model that you may read" in text
    assert "known names like it: Qwen/Qwen3-8B" in text
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    began = time.monotonic()
    text = refused(MachineNotReady, output="out")
    assert "the hub cannot be reached" in text
    assert "`hf download Qwen/Qwen3-8X --local-dir DIR`" in text
    assert time.monotonic() - began < 60
    assert not (shop / "out").exists()


def test_the_token_goes_to_secure_addresses_alone(hub, monkeypatch):
    """It is sent to this machine or over https, never in the open."""
    opener = Mock(**{"open.side_effect": OSError("not now")})
    monkeypatch.setenv("HF_TOKEN", "some-token")
    monkeypatch.setattr(hub_module.urllib.request, "build_opener", lambda *handlers: opener)
    for endpoint in ("http://mirror.example", "https://mirror.example"):
        monkeypatch.setenv("HF_ENDPOINT", endpoint)
        with pytest.raises(MachineNotReady):
            ask_hub(ModelNeed(model="org/tiny", what="model org/tiny"))
    sent = [bool(call.args[0].unredirected_hdrs) for call in opener.open.call_args_list]
    assert sent == [False, True]


@pytest.mark.usefixtures("hub")
def test_the_demos_model_is_found_by_its_id(shop, monkeypatch):
    """Where there is no connection; a plan may name it as the hub does, and data are counted by it.
    The hub's own comes first, where it can be had or is in its cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(shop))
    folder = shop / "finetune-advisor" / "models" / "tiny"
    shutil.copytree(shop / "model", folder)
    (folder / MADE).write_text('{"model": "org/tiny"}')
    assert prepare_plan("plan.yaml", Options()).copy.model == "org/tiny"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder.rename(shop / "away")
    assert "is not in the hub cache" in refused(MachineNotReady, output="out")
    (shop / "away").rename(folder)
    said = said_by_run(output="out")
    assert f"org/tiny: the copy that `advise demo` made is used, {shown_path(folder)}" in said
    assert read_plan("out/plan.yaml").model == str(folder)
    assert has_template("org/tiny") is not None
    write_fake_model(shop / "hub/hub/models--org--tiny/snapshots/abc", CONFIG)
    assert made_here("org/tiny") is None


WITH_GPU = machine(gpu(free=20))


def here(shop, machine, plan=PLAN):
    """What stands between a plan in the shop's folder and a run on the machine."""
    (shop / "plan.yaml").write_text(plan)
    return check_machine(read_plan("plan.yaml"), shop / "plan.yaml", machine)


def test_a_plan_for_another_machine_is_told_from_what_can_be_mended_here(shop, approved):
    """Missing packages are told with the line that installs them, not as another machine's plan."""
    on_gpu = PLAN + "launch: {device: cuda}\n"
    two = on_gpu.replace("cuda", "cuda, processes: 2")
    large = on_gpu.replace("model: model", "model: Qwen/Qwen3-32B")
    small = machine(gpu(total=12, free=12, name="RTX 3060"))
    cases = (MACHINE, on_gpu), (WITH_GPU, on_gpu), (WITH_GPU, two), (small, large), (MACHINE, PLAN)
    found = [here(shop, *case) for case in (*cases, (replace(MACHINE, software={}), PLAN))]
    assert "pip install" in found[-1].lacking[0].hint
    told = ((one.other_machine, *(fault.headline for fault in one.lacking)) for one in found)
    approved([[re.sub(r"about [\d.]+ GiB", "about N GiB", line) for line in one] for one in told])


@pytest.mark.usefixtures("no_cache")
def test_download_and_licence_are_known_before_a_run(shop, monkeypatch, approved):
    """A hub model that is not cached is as large as its parameters; a login may have access."""
    assert here(shop, MACHINE).download_bytes == 0
    hub = here(shop, MACHINE, PLAN.replace("model: model", "model: Qwen/Qwen3-8B"))
    assert 15 * GIB < hub.download_bytes < 16 * GIB
    assert hub.downloads[1].startswith("model cache: ")
    unknown = here(shop, MACHINE, PLAN.replace("model: model", "model: nobody/knows-this"))
    assert unknown.download_bytes is None
    gated = PLAN.replace("model: model", "model: meta-llama/Llama-3.1-8B")
    approved([hub.downloads[0], here(shop, MACHINE, gated).lacking])
    monkeypatch.setenv("HF_TOKEN", "some-token")
    assert here(shop, MACHINE, gated).lacking == ()


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        (PLAN, 13),  # 4 rows a step
        (PLAN.replace("micro_batch_size: 4", "micro_batch_size: 8\n    grad_accum: 8"), 3),
        (PLAN + "launch: {device: cuda, processes: 2}\n", 7),
        (PLAN + SECOND.replace("}", ", micro_batch_size: 16}"), 4),
    ],
)
def test_a_trial_reads_about_fifty_rows(shop, text, steps):
    """Its steps follow from the rows a step, and are never fewer than three."""
    (shop / "plan.yaml").write_text(text)
    assert trial_steps(read_plan("plan.yaml")) == steps


UNTIED = CONFIG | {"tie_word_embeddings": False}


def text_of(folder, **options):
    return "\n".join(fault.headline for fault in model_faults(folder, **options))


def shard(folder, config, *, count=2):
    """Write the weights as `count` files with an index; the tensors of each."""
    names = list(llama_tensors(config).items())
    parts = {
        f"model-{place + 1:05d}-of-{count:05d}.safetensors": dict(names[place::count])
        for place in range(count)
    }
    for name, tensors in parts.items():
        write_safetensors(folder / name, tensors)
    named = {tensor: name for name, tensors in parts.items() for tensor in tensors}
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": named}))
    (folder / WEIGHTS).unlink(missing_ok=True)
    return parts


def faults_of(shop, config=None, *, plan=PLAN):
    """The faults of a plan, and of a model with this config.json; nothing may have been written."""
    if config is not None:
        (shop / "model" / "config.json").write_text(json.dumps({**CONFIG, **config}))
    text = refused(text=plan, output="out")
    assert not (shop / "out").exists()
    return text


def test_every_fault_of_a_model_is_told_in_one_go_before_anything_is_written(shop, approved):
    """Weights, tokenizer, a stage's adapter and its reward model are all checked."""
    (shop / "mine").mkdir()
    (shop / "mine" / "adapter_config.json").write_text('{"base_model_name_or_path": 8}')
    (shop / "mine" / "adapter_model.safetensors").write_bytes(b"\x08")
    write_fake_model(shop / "rm", CONFIG)
    for name in ("model", "rm"):
        os.truncate(shop / name / WEIGHTS, 5000)
    (shop / "model" / "tokenizer.json").write_text('{"model": ')
    starts = "objective: ppo\n    reward_model: ./rm\n    start_from: ./mine"
    approved(faults_of(shop, plan=PLAN.replace("objective: sft", starts)))


def rewritten(folder, **changes):
    return (folder / "config.json").write_text(json.dumps(UNTIED | changes))


def header(folder, change):
    """Write the weights' header anew, as `change` makes of it."""
    path = folder / WEIGHTS
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    found = json.loads(data[8 : 8 + size])
    text = change(found)
    text = json.dumps(found) if text is None else text
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode() + data[8 + size :])


DAMAGES = {
    "heads": lambda f: rewritten(f, num_attention_heads=7),
    "kv heads": lambda f: rewritten(f, num_key_value_heads=3),
    "huge": lambda f: rewritten(f, num_hidden_layers=10**9),
    "text": lambda f: rewritten(f, hidden_size="64"),
    "null": lambda f: rewritten(f, vocab_size=None),
    "negative": lambda f: rewritten(f, num_attention_heads=-4),
    "quantised by nothing": lambda f: rewritten(f, quantization_config="yes"),
    "config is a list": lambda f: (f / "config.json").write_text("[]"),
    "cut": lambda f: os.truncate(f / WEIGHTS, 5000),
    "cut header": lambda f: os.truncate(f / WEIGHTS, 60),
    "empty": lambda f: os.truncate(f / WEIGHTS, 0),
    "longer": lambda f: (f / WEIGHTS).open("ab").write(b"12"),
    "garbage": lambda f: (f / WEIGHTS).write_bytes(b"\xff" * 99),
    "not JSON": lambda f: header(f, lambda _: "{]"),
    "no object": lambda f: header(f, lambda _: "[1]"),
    "bad entry": lambda f: header(f, lambda h: h.update(x=3)),
    "bytes": lambda f: header(f, lambda h: h["model.norm.weight"].update(shape=[65])),
    "pointer": lambda f: (f / WEIGHTS).write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha"
    ),
    "folder": lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).mkdir()),
    "circle": lambda f: ((f / WEIGHTS).unlink(), (f / WEIGHTS).symlink_to(WEIGHTS)),
    "pipe": lambda f: ((f / WEIGHTS).unlink(), os.mkfifo(f / WEIGHTS)),
    "none": lambda f: (f / WEIGHTS).unlink(),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_what_is_not_whole_is_named(name, tmp_path, approved):
    """Weights or config.json that cannot be those of one model, each with what is wrong."""
    write_fake_model(tmp_path, UNTIED)
    assert text_of(tmp_path) == ""
    DAMAGES[name](tmp_path)
    approved(text_of(tmp_path))


def test_a_checkpoint_of_several_files_is_whole_or_says_what_is_missing(tmp_path, approved):
    """Missing and cut files of an index, and names that lead out of the folder."""
    write_fake_model(tmp_path, UNTIED)
    parts = list(shard(tmp_path, UNTIED, count=4))
    assert text_of(tmp_path) == ""
    (tmp_path / parts[1]).rename(tmp_path / "away")
    found = [text_of(tmp_path)]
    assert text_of(tmp_path, downloads=True) == ""
    (tmp_path / "away").rename(tmp_path / parts[1])
    os.truncate(tmp_path / parts[0], 999)
    for index in (None, '{"a": "../../x.safetensors"}', '["a"]'):
        if index:
            (tmp_path / INDEX).write_text(f'{{"weight_map": {index}}}')
        found.append(text_of(tmp_path))
    approved(found)


def test_a_model_in_the_hub_cache_is_checked_as_far_as_it_is_there(shop, monkeypatch):
    """A missing shard is the trainer's business, but not offline; a damaged one is told at once."""
    snapshot = shop / "hub" / "models--org--tiny" / "snapshots" / "abc"
    write_fake_model(snapshot, CONFIG)
    first, second = shard(snapshot, CONFIG)
    monkeypatch.setenv("HF_HUB_CACHE", str(shop / "hub"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert run(text=PLAN.replace("model: model", "model: org/tiny")).status == "done"
    (snapshot / second).unlink()
    assert f"is missing: {second}" in refused(output="out")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    os.truncate(snapshot / first, 999)
    said = refused(output="out")
    assert said.startswith(f"{snapshot / first}: is cut off: 999 bytes do not hold its header")
    assert "missing" not in said


def test_no_catalogued_model_is_refused():
    """The numbers of every model in the catalogue are numbers that a model can have."""
    entries = {one: organisation_models(one.split("/")[0].lower())[one] for one in catalogue_ids()}
    assert len(entries) > 100
    assert [fault for one, entry in entries.items() for fault in config_faults(entry, one)] == []


EXPERTS = PLAN.replace(RANK, f"    target_modules: with-experts\n{RANK}")
REWARDS = """ppo
    rewards:
      - {reward: own.py:scores}
      - {reward: other.py:score}
      - {verifier: json_schema, schema: form.json}
      - {reward_model: ./nowhere}"""
TEACHERS = {"none": "", "no-folder": "./nowhere", "itself": "./model", "damaged": "./large"}
# Of a stage: a teacher, files of rewards; a checkpoint's quantisation, experts and attention.
CANNOT = {
    **{
        f"teacher {name}": (PLAN.replace(
            "objective: sft", "objective: distill" + f"\n    teacher: {teacher}" * bool(teacher)
        ), {})
        for name, teacher in TEACHERS.items()
    },
    "rewards": (PLAN.replace("objective: sft", f"objective: {REWARDS}"), {}),
    **{
        method: (plan, {"quantization_config": {"quant_method": method}})
        for plan, methods in (
            (PLAN.replace(RANK, f"    quantization: int8\n{RANK}"), ("mxfp4", "fp8")),
            (FULL, ("gptq", "awq", "bitsandbytes")),
        )
        for method in methods
    },
    "experts": (EXPERTS, {}),
    "narrow experts": (PLAN.replace(RANK, f"    quantization: nf4\n{RANK}"), {
        "model_type": "mixtral", "num_local_experts": 4, "num_experts_per_tok": 2,
        "intermediate_size": 100,
    }),
    "attention": (PLAN, {"model_type": "gemma2"}),  # sdpa is what a plan that is silent means
}  # fmt: skip


@pytest.mark.parametrize("case", CANNOT)
def test_what_a_plan_cannot_have_is_told_before_anything_is_written(shop, case, approved):
    """Each with what is there, and the setting or the folder that is right."""
    write_fake_model(shop / "large", CONFIG)
    os.truncate(shop / "large" / WEIGHTS, 5000)
    (shop / "own.py").write_text("def score(prompts, completions):\n    return [0.0]\n")
    plan, config = CANNOT[case]
    approved(faults_of(shop, config, plan=plan))


def test_a_mixture_has_experts_to_correct(shop):
    """As the refused dense model has not."""
    mixture = {"num_local_experts": 4, "num_experts_per_tok": 2, "model_type": "mixtral"}
    (shop / "model" / "config.json").write_text(json.dumps({**CONFIG, **mixture}))
    assert run(text=EXPERTS, output="there").exit_code == 0


ROWS = range(20)


KINDS = {
    "chats": [chat(f"What is {n}?", f"It is number {n} of twenty.") for n in ROWS],
    "sums": [{"question": f"{n} + 1?", "answer": f"One more.\n#### {n + 1}"} for n in ROWS],
    "classes": [{"text": f"mail {n}", "label": ("spam", "ham")[n % 2]} for n in ROWS],
    "texts": [{"text": f"A text about number {n} and other things."} for n in ROWS],
    "pairs": [{"prompt": f"{n}?", "chosen": f"It is {n}.", "rejected": "no"} for n in ROWS],
    "feedback": [
        {"prompt": f"{n}?", "completion": f"It is {n}.", "label": n % 2 == 0} for n in ROWS
    ],
    "checked": [{"prompt": f"{n}?", "ground_truth": str(n)} for n in ROWS],
}
# Trainers of trainers/: the default head, and a head with classes.
PURPOSES = [*((name, {}) for name in objectives()), ("sft", {"head": "classes"})]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory):
    """A folder with one file of each kind."""
    folder = tmp_path_factory.mktemp("kinds")
    for name, rows in KINDS.items():
        write_rows(folder / f"{name}.jsonl", rows)
    write_rows(folder / "my chats.jsonl", KINDS["chats"])
    return folder


def planned(folder, *stages):
    """The entries of a plan; a stage is (objective, file name, options)."""
    data = {
        "model": "owner/model",
        "stages": [
            {
                "name": f"s{place}", "objective": name, "update": "lora", "learning_rate": 1e-4,
                "data": f"{file}.jsonl", **options,
            }
            for place, (name, file, options) in enumerate(stages)
        ],
    }  # fmt: skip
    return entries(plan_from_data(parse_yaml(json.dumps(data), name="plan.yaml"), base=folder))


def checked(folder, todo):
    stage = Stage(name="s", objective="sft", update="lora", learning_rate=1e-4)
    plan = Plan(model="owner/model", stages=(stage,))
    return check_data(PlanOnDisk(plan=plan, path=folder / "plan.yaml"), todo)


def faults(folder, todo):
    return [fault.headline for fault in checked(folder, todo).faults]


def test_a_file_is_checked_for_every_stage_that_reads_it(kinds):
    """A file that suits the first stage and not the second is refused before the first begins."""
    todo = planned(kinds, ("sft", "my chats", {}), ("dpo", "my chats", {}))
    assert InputError(faults=checked(kinds, todo).faults).text() == (
        "my chats.jsonl: cannot train objective dpo: it holds paired (messages)\n"
        "  it can train: sft\n  advise check 'my chats.jsonl'"
    )
    assert faults(kinds, todo[1:]) == faults(kinds, todo)
    todo = planned(kinds, ("sft", "chats", {}), ("rm", "pairs", {}), ("ppo", "chats", {}))
    assert [faults(kinds, todo[done:]) for done in range(4)] == [[]] * 4


@pytest.fixture(scope="module")
def cached(kinds):
    """`faults` that profiles each file once."""
    from advisor.data.measure import profile as module

    known = cache(lambda path: module.profile(path))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("advisor.data.profile", lambda path, **_: known(path), raising=False)
        yield lambda todo: faults(kinds, todo)


@examples(1)
@given(data=st.data())
def test_what_is_left_is_refused_exactly_if_the_whole_plan_is(kinds, cached, data):
    """Whichever stages are done, a later call refuses what the first one would."""
    stage = st.tuples(st.sampled_from(PURPOSES), st.sampled_from(sorted(KINDS)))
    stages = data.draw(st.lists(stage, min_size=1, max_size=5))
    todo = planned(kinds, *((name, file, options) for (name, options), file in stages))
    left = data.draw(st.lists(st.sampled_from(todo), unique_by=lambda entry: entry.name))
    whole = cached(todo)
    assert set(cached(left)) <= set(whole)
    assert set().union(*(cached([entry]) for entry in todo)) == set(whole)


def test_reinforcement_without_a_reward_is_refused_before_it_starts(kinds):
    """Questions alone teach nothing: something has to score the answers."""
    (found,) = faults(kinds, planned(kinds, ("ppo", "pairs", {})))
    assert "nothing says what reward an answer gets" in found
    assert faults(kinds, planned(kinds, ("ppo", "pairs", {"verifier": "exact"}))) == []
    assert faults(kinds, planned(kinds, ("grpo", "sums", {}))) == []
    todo = planned(kinds, ("sft", "texts", {}), ("rm", "pairs", {}), ("ppo", "chats", {}))
    (warning,) = checked(kinds, todo).warnings
    assert warning.startswith("texts.jsonl holds raw text, and objective sft is meant for paired")


@pytest.mark.train
@pytest.mark.parametrize("name", sorted(KINDS))
def test_what_is_refused_is_what_the_trainer_cannot_prepare(kinds, tiny_model, name):
    """The launcher accepts a file if and only if the trainer can prepare its rows."""
    from transformers import AutoTokenizer

    from tests.trainers.fitting import prepare_stage_rows
    from trainers.rows import Templater

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    path = kinds / f"{name}.jsonl"
    for purpose, options in PURPOSES:
        if purpose in ("ppo", "grpo", "rloo"):
            options = {"verifier": "regex", "pattern": "1"}
        try:
            prepare_stage_rows(
                read_examples(path), Templater(tokenizer, learn_all=False), seq_len=256, seed=1,
                truncation="stop", holdout=0.1, kind=kind_of(purpose, options, name),
            )  # fmt: skip
            is_prepared = True
        except InputError:
            is_prepared = False
        refused = faults(kinds, planned(kinds, (purpose, name, options)))
        assert (refused == []) == is_prepared, (purpose, options, refused)


def kind_of(purpose, options, name):
    """What the trainer of an objective prepares of such data."""
    from trainers.heads import Classifier
    from trainers.rows.conversation import PROMPTS
    from trainers.stage.objective import Objective

    if options.get("head") == "classes":
        return Classifier.kind
    # PPO has a loop of its own; a teacher answers what the data do not.
    if purpose == "ppo" or (purpose == "distill" and name == "checked"):
        return PROMPTS
    name = f"trainers.{purpose}"
    kinds = (value for value in vars(import_module(name)).values() if isinstance(value, type))
    return next(one.kind for one in kinds if one.__module__ == name and issubclass(one, Objective))


FORGETS = (
    "stage sft: few rows read several times make it forget; its own answers to general questions"
    " keep what it can do: the same command with --set 'stages.sft.replay={rows: 500}'"
)


@pytest.mark.parametrize(
    ("model", "keys", "told"),
    [
        ("owner/model-Instruct", {}, [FORGETS]),
        ("owner/model-Base", {}, [FORGETS.partition(";")[0]]),
        ("owner/model-Instruct", {"replay": {"rows": 9}}, []),
        ("owner/model-Instruct", {"epochs": 1}, []),
        ("owner/model-Instruct", {"head": "classes"}, []),
    ],
)
def test_a_plan_that_is_likely_to_forget_says_so_before_it_trains(kinds, model, keys, told):
    """With the setting that is the cure, where the base can answer; the rules say when."""
    stage = {"name": "sft", "objective": "sft", "update": "lora", "epochs": 3, **keys}
    stage |= {"learning_rate": 1e-4}
    path = str(kinds / "chats.jsonl")
    text = json.dumps({"model": model, "data": {"path": path}, "stages": [stage]})
    plan = plan_from_data(parse_yaml(text, name="plan.yaml"))
    found = check_data(PlanOnDisk(plan=plan, path=kinds / "plan.yaml"), entries(plan)).warnings
    assert len(found) == len(told)
    assert all(line.startswith(start) for line, start in zip(found, told, strict=True))
