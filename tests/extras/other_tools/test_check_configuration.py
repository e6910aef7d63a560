"""`advise check` of another tool's configuration; harmful files end soon and tell no secret.

UPDATE_GOLDEN=1 python -m pytest tests/extras/other_tools/test_check_configuration.py
"""

import contextlib
import io
import json
import os
import random
import re
import time
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from advisor.commands.output import print_json
from advisor.extras.other_tools.data_sets import locate_set
from advisor.extras.other_tools.file import command_line, read_file
from advisor.extras.other_tools.page import print_configuration, write_carried
from advisor.extras.other_tools.report import ConfigurationReport
from advisor.extras.other_tools.yaml_text import edited, steps
from advisor.ground.errors import AdviseError, InputError
from advisor.ground.files import refused_by_system
from advisor.plan.read import read_plan
from advisor.probe import stated_hardware
from tests.conftest import golden
from tests.data.conftest import BOT, USER, jsonl
from tests.extras.other_tools.finding_cases import BASES
from tests.faults.fuzz.mutate import Mutator

TRL = """\
# Qwen on our tickets
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
dataset_name: acme/tickets
learning_rate: 2.0e-3  # as in the tutorial
per_device_train_batch_size: 4
gradient_accumulation_steps: 4
use_peft: true
lora_r: 32
neftune_noise_alpha: 5
logging_steps: 10
"""

LIGER = "axolotl.integrations.liger.LigerPlugin"


@pytest.fixture
def run(call):
    """Writes a file, and runs `advise check FILE ...` -> exit code and what was printed."""

    def check(text, *arguments):
        Path("trl.yaml").write_text(text)
        code, out, err = call("check", "trl.yaml", *arguments)
        return code, out + err

    return check


@pytest.fixture
def document(run):
    """The same as one JSON document, on a GPU that most files fit."""

    def check(text, gpu="H100", *arguments):
        code, said = run(text, "--gpu", gpu, "--json", *arguments)
        return code, json.loads(said)

    return check


def ids(found):
    """The ids of the findings."""
    return [one["id"] for one in found["findings"]]


def test_the_page_says_first_whether_it_fits_and_what_would(run, monkeypatch, approved):
    """Exit code 3 with the smallest change in the tool's words; 0 if it fits or nobody knows."""
    monkeypatch.setenv("COLUMNS", "80")
    code, output = run(TRL, "--gpu", "RTX 3090")
    assert (code, output.startswith("Does not fit: it needs about ")) == (3, True)
    assert "dtype: bfloat16" in " ".join(output.splitlines()[:3])
    assert "+dtype: bfloat16" in output
    assert output == golden("check_configuration_80.txt", output)
    assert max(map(len, output.splitlines())) <= 80
    pages = [run(TRL, "--gpu", gpu) for gpu in ("H100", "RTX 3060", "unknown")]
    assert [code for code, _ in pages] == [0, 3, 0]
    many = "base_model: Qwen/Qwen3-8B\nadapter: lora\nsequence_len: 8192\nmicro_batch_size: 4\n"
    said = " ".join(run(many, "--gpu", "RTX 4090")[1].split())
    assert "from fused kernels and recomputes activations instead of keeping them (" in said
    for gpu, device in (("2 x 24GB", "each of 2 GPUs has"), ("Foo 24GB", "the Foo 24GB has")):
        assert device in " ".join(run(many, "--gpu", gpu)[1].split())
    approved([re.sub(r"[\d.,]+", "1", page).splitlines() for _, page in pages])  # no estimate


def test_a_change_that_fits_does_fit(document):
    """The file with the diff applied is checked again: it fits, and what was wrong is gone."""
    _, before = document(TRL, "RTX 3090")
    code, after = document(yaml.safe_dump(yaml.safe_load(TRL) | before["changes"]), "RTX 3090")
    assert code == 0
    assert after["verdict"] in ("fits", "tight", "may_fit")
    gone = {one["id"] for one in before["findings"] if one["instead"] and one["where"]}
    assert gone
    assert gone.isdisjoint(ids(after))


def test_changes_are_taken_together_before_none_is_said_to_fit(document):
    """4 bit, a module, fewer rows and as short ones as it takes; else what all of them leave."""
    long = "model_name_or_path: Qwen/Qwen3-8B\ndataset_name: acme/x\nmax_length: 16384\n"
    code, found = document(long, "RTX 3060")
    changes = {"max_length", "use_peft", "load_in_4bit"}
    assert (code, changes - found["change"].keys()) == (3, set())
    code, after = document(yaml.safe_dump(yaml.safe_load(long) | found["changes"]), "RTX 3060")
    assert (code, after["verdict"]) == (0, "fits")
    code, none = document(long, "GTX 1650")
    said = none["summary"].partition("No change of its keys makes it fit: ")[2]
    assert re.fullmatch(
        r"with all of them it still needs \S+ GiB\. With changes it fits on .*", said
    )


def test_the_release_that_is_asked_for_decides_how_trl_makes_its_loss(document):
    """In the file or in requirements.txt: from 1.7 on no whole logits, whatever Liger is set to;
    label smoothing needs them after all."""
    assert "trl/liger-deprecated" in ids(document(TRL + "use_liger_kernel: true\n")[1])
    terms = {}
    for name, text in (
        ("1.16", ""),
        ("1.6", "# trl==1.6\n"),
        ("smooth", "label_smoothing_factor: 1\n"),
    ):
        found = document(TRL + text)[1]["memory"]["terms"]
        terms[name] = sum(one["gib"] for one in found if one["name"] == "logits and loss")
    Path("requirements.txt").write_text("trl[peft]==0.15.2\n")
    old = document(TRL + "use_liger_kernel: true\n")[1]
    assert "trl/liger-deprecated" not in ids(old)
    assert terms["1.6"] == terms["smooth"] > 1 > terms["1.16"]
    assert any("trl 0.15.2" in note for note in old["notes"])


def test_ligers_loss_counts_where_the_tool_has_it_and_is_proposed_before_4_bit(document):
    """By LLaMA-Factory's key, not for pairs, and by Axolotl's plugins, of which others are told."""
    lf = BASES["llamafactory"] | {
        "model_name_or_path": "Qwen/Qwen3-4B", "cutoff_len": 8192, "bf16": True,
        "per_device_train_batch_size": 1,
    }  # fmt: skip
    ax = BASES["axolotl"] | {
        "base_model": "Qwen/Qwen3-4B", "sequence_len": 8192, "gradient_checkpointing": True,
    }  # fmt: skip

    def logits(file):
        _, found = document(yaml.safe_dump(file), "RTX 4090")
        terms = {one["name"]: one["gib"] for one in found["memory"]["terms"]}
        return terms.get("logits and loss", 0.0) > 1, found

    is_whole, found = logits(lf)
    assert (is_whole, found["change"]) == (True, {"enable_liger_kernel": True})
    texts = [str(one["change"]) for one in found["ways"]]
    places = ["enable_liger" in one for one in texts], ["quantization_bit" in one for one in texts]
    assert places[0].index(True) < places[1].index(True)
    assert all(one["need_gib"] < found["memory"]["need_gib"] for one in found["ways"])
    assert found["ways"][0]["at"] == {"enable_liger_kernel": "a new key"}
    on = {"enable_liger_kernel": True}
    assert [logits(lf | on)[0], logits(lf | on | {"stage": "dpo"})[0]] == [False, True]
    is_whole, found = logits(ax)
    assert (is_whole, found["change"]["plugins"]) == (True, [LIGER])
    flags = {"liger_rms_norm": True, "liger_glu_activation": True}
    is_whole, found = logits(ax | {"plugins": [LIGER, "mine.Plugin"]} | flags)
    assert (is_whole, found["plan"]["kernels"]) == (True, "liger")
    assert [one["value"] for one in found["not_carried"] if one["key"] == "plugins"] == [
        ["mine.Plugin"]
    ]
    fused = {"plugins": [LIGER], "liger_fused_linear_cross_entropy": True}
    cut = {"plugins": ["axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin"]}
    assert [logits(ax | more)[0] for more in (fused, cut)] == [False, False]


def test_what_no_key_of_the_file_says_takes_a_hand(run, monkeypatch):
    """It is said so, with what it does, and not left out."""
    monkeypatch.setattr(ConfigurationReport, "_their_changes", lambda *_: {})
    said = " ".join(run(TRL, "--gpu", "RTX 3090")[1].split())
    assert "by hand: stores the frozen base in 4 bits: " in said
    assert (
        "no key of this file says all that would make it fit (holds the frozen base in 16" in said
    )


def test_unsloths_file_is_changed_in_its_own_words(run):
    """Its values, too; a section that it lacks is written."""
    text = "model: Qwen/Qwen3-14B\ndata:\n  dataset: a/b\ntraining:\n  training_type: full\n"
    code, said = run(text, "--gpu", "H100", "--fix", "fixed.yaml")
    assert (code, "training.training_type: full -> lora" in said) == (0, True)
    fixed = yaml.safe_load(Path("fixed.yaml").read_text())
    assert (fixed["training"]["training_type"], fixed["lora"]["target_modules"]) == (
        "lora", "all-linear",
    )  # fmt: skip


def test_packed_sequences_are_shortened_to_the_longest_row_before_anything_is_lost(document):
    """No row is cut then; a row that is not known to be shorter is not taken to be."""
    jsonl(
        Path(),
        [{"prompt": f"Q {n}?", "completion": f"So {n}. " * 40} for n in range(300)],
        "r.jsonl",
    )
    local = "datasets: [{path: json, data_files: r.jsonl}]"
    file = TRL.replace("dataset_name: acme/tickets", local) + (
        "dtype: bfloat16\nmax_length: 16384\npacking: true\nattn_implementation: flash_attention_2\n"
    )
    for text, harmless in ((file, True), (file.replace(local, "dataset_name: a/b"), False)):
        ways = document(text, "RTX 3090")[1]["ways"]
        shorter = [one for one in ways if "max_length" in one["change"]]
        assert any(one["costs"].startswith("no row is longer") for one in shorter) is harmless


def test_rows_that_axolotl_pads_to_the_whole_length_count_so(call):
    """As a packed sequence of the length; without the key a row is as long as it is. The commands
    name the GPU that was named."""
    jsonl(
        Path(),
        [{"instruction": f"Wie {n}?", "output": f"So {n}."} for n in range(300)],
        "rows.jsonl",
    )
    file = BASES["axolotl"] | {
        "base_model": "Qwen/Qwen2.5-7B-Instruct", "sequence_len": 8192, "micro_batch_size": 4,
        "datasets": [{"path": "rows.jsonl", "ds_type": "json", "type": "alpaca"}],
    }  # fmt: skip

    def need(**keys):
        Path("axolotl.yaml").write_text(yaml.safe_dump(file | keys))
        code, out, _ = call("check", "axolotl.yaml", "--gpu", "RTX 4090", "--json")
        found = json.loads(out)
        return code, found["memory"]["need_gib"], found["change"]

    padded, packed, ragged = (
        need(**{key: True}) for key in ("pad_to_sequence_len", "sample_packing", "tf32")
    )
    assert padded == (3, packed[1], {"pad_to_sequence_len": False})
    assert (ragged[0], ragged[1] < 24) == (0, True)
    need(pad_to_sequence_len=True)
    _, page, _ = call("check", "axolotl.yaml", "--gpu", "RTX 4090")
    assert page.count(" --gpu 'RTX 4090' --") == 2
    _, page, _ = call("check", "axolotl.yaml", "--gpu", "RTX 4090", "--plan", "plan.yaml")
    assert page.endswith("Next:  advise export plan.yaml --to bundle\n")


def test_a_file_that_the_tool_refuses_is_said_first(run, document):
    """The key at its place, beside whether it would fit: the exit code is about the memory."""
    text = TRL + "load_in_4bit: true\nload_in_8bit: true\n"
    code, output = run(text, "--gpu", "H100")
    assert (code, output.startswith("Fits: ")) == (0, True)
    said = " ".join(output.split())
    assert "TRL refuses this file: load_in_4bit and load_in_8bit exclude" in said
    assert "(line 12)" in output
    (refused,) = [one for one in document(text)[1]["findings"] if one["refused"]]
    assert refused["where"] == "trl.yaml:12:1"


def test_a_misspelt_key_and_a_rate_far_from_the_evidence_are_found_where_they_stand(document):
    """Both where they stand: the key is estimated as meant, the rate has its sources."""
    code, found = document(TRL.replace("gradient_accumulation_", "gradient_acumulation_"))
    assert (code, found["plan"]["grad_accum"]) == (0, 4)
    assert "+gradient_accumulation_steps: 4" in found["diff"]
    misspelt = next(one for one in found["findings"] if one["id"].startswith("key/"))
    rate = next(one for one in found["findings"] if one["id"] == "rate/far-above")
    assert (misspelt["where"], rate["where"]) == ("trl.yaml:6:1", "trl.yaml:4:1")
    assert rate["instead"] == {"plan.learning_rate": 0.0002}
    assert rate["sources"]


LLAMA_FACTORY = """\
model_name_or_path: meta-llama/Llama-3.1-8B-Instruct
stage: sft
do_train: true
finetuning_type: lora
dataset: shop
template: TEMPLATE
output_dir: out
"""
TEMPLATE, SAVED = "template/of-another-family", "lora_modules_to_save"


@pytest.mark.parametrize(
    ("text", "values", "finding"),
    [  # a file, places in its document with their values, and an id that is found or (not) is not
        # TRL makes a list of one name of a text: `all-linear` alone means the same.
        (TRL + "lora_target_modules: all-linear\n", {"plan.target_modules": "all-linear"},
         "not key/lora_target_modules"),
        # A file for pairs is one of dpo or of reward: its own comment tells which.
        (f"# Start:  trl reward --config trl.yaml\n{TRL}", {"command": "reward"}, ""),
        (TRL, {"command": "sft"}, ""),
        # A variant of the right template is none of another family.
        (LLAMA_FACTORY.replace("TEMPLATE", "qwen"), {"changes.template": "llama3"}, TEMPLATE),
        (LLAMA_FACTORY.replace("TEMPLATE", "llama3"), {"changes.template": None}, f"not {TEMPLATE}"),
        (LLAMA_FACTORY.replace("TEMPLATE", "llama3_nothink"), {"changes.template": None},
         f"not {TEMPLATE}"),
        # Copies of the embeddings and of the output matrix: 2 x 152,064 x 3,584 weights of Qwen2.5-7B,
        # by its config.json.
        (TRL + f"{SAVED}: [embed_tokens, lm_head]\n", {"copies": "1,089,994,752 x"},
         "lora/whole-embeddings"),
        (TRL + f"{SAVED}: [lm_head]\n", {"copies": "544,997,376 x"}, "lora/whole-embeddings"),
    ],
)  # fmt: skip
def test_a_file_is_understood_as_its_tool_does(document, text, values, finding):
    """What is meant, what it takes, and what is said of it."""
    _, found = document(text)
    terms = {one["name"]: one["because"] for one in found["memory"]["terms"]}
    copies = [why for name, why in terms.items() if name.startswith("trained embed")]
    for place, value in values.items():
        group, _, key = place.rpartition(".")
        if place == "copies":
            assert value in copies[0]
        else:
            assert (found[group] if group else found).get(key) == value
    assert (finding.removeprefix("not ") in ["", *ids(found)]) != finding.startswith("not ")


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        # A configuration names its own data and lengths.
        (TRL, ["--seq-len", 512], "--seq-len has no effect on a configuration"),
        # A model that nobody knows, and what would tell its size.
        (TRL.replace("Qwen/Qwen2.5-7B-Instruct", "acme/unheard-of"), ["--gpu", "RTX 4090"],
         "'acme/unheard-of': unknown model"),
        # Rules of SimPO cite a paper that stands in its own file.
        (yaml.safe_dump(BASES["axolotl"] | {"rl": "simpo", "learning_rate": 0.01}), [],
         "SimPO: Simple Preference Optimization"),
    ],
    ids=["options of data", "no estimate", "a source of a method"],
)  # fmt: skip
def test_what_cannot_be_done_and_what_it_rests_on_is_said(run, text, flags, said):
    """On the page or in the refusal."""
    code, output = run(text, *flags)
    assert (said in " ".join(output.split()), code == 2) == (True, "--seq-len" in flags)


def test_it_is_carried_over_to_a_plan(run, document):
    """The plan reads back, says where each value is from, and names what is not in it."""
    code, output = run(
        TRL + "label_names: [x]\n", "--gpu", "RTX 3090", "--plan", "plan.yaml", "--as-is"
    )
    assert code == 3
    plan, text = read_plan("plan.yaml"), Path("plan.yaml").read_text()
    stage = plan.stages[0]
    assert (plan.model, stage.update) == ("Qwen/Qwen2.5-7B-Instruct", "lora")
    assert (stage.learning_rate, stage.micro_batch_size, stage.grad_accum) == (0.002, 4, 4)
    assert (stage.options["rank"], stage.trl["neftune_noise_alpha"]) == (32, 5)
    for said in ("# lora_r", "# TRL's default", "label_names"):
        assert said in text
    assert "Written: ./plan.yaml" in output or "Written: plan.yaml" in output
    assert "label_names" in output
    _, found = document(TRL + "label_names: [x]\n")
    assert [one["key"] for one in found["not_carried"]] == ["label_names"]


@pytest.mark.parametrize(("keys", "lost"), [("", []), ("report_to: wandb\n", ["report_to"])])
def test_a_key_of_an_extra_that_is_not_here_matters_if_the_file_uses_it(
    document, monkeypatch, keys, lost
):
    """Then it is not carried over; a plan is made all the same."""
    monkeypatch.setattr("advisor.extras.other_tools.mapping.extras", dict)
    _, found = document(TRL + keys)
    assert found["memory"]["need_gib"] > 0
    assert [one["key"] for one in found["not_carried"]] == lost


def test_room_for_answers_comes_on_top_of_the_request(document):
    """TRL's GRPO limits the answer alone; a smaller batch has more accumulation, same prompts."""
    text = TRL + "max_completion_length: 256\nnum_generations: 8\n"
    _, found = document(text, "H100", "--plan", "plan.yaml")
    assert (found["command"], read_plan("plan.yaml").stages[0].seq_len) == ("grpo", 512 + 256)
    text = text.replace("accumulation_steps: 4", "accumulation_steps: 16")
    text = text.replace("train_batch_size: 4", "train_batch_size: 16")
    change = document(text, "RTX 4090")[1]["change"]
    assert change["per_device_train_batch_size"] < 16
    assert change["gradient_accumulation_steps"] > 16


def test_dataset_info_beside_the_file_is_found(document):
    """LLaMA-Factory looks in ./data: the folder is proposed, and the rows are measured."""
    Path("dataset_info.json").write_text('{"shop": {"file_name": "shop.json"}}')
    rows = [{"instruction": f"Order {n}?", "output": f"It is sent on day {n}."} for n in range(60)]
    Path("shop.json").write_text(json.dumps(rows))
    _, said = document(LLAMA_FACTORY.replace("TEMPLATE", "llama3"))
    assert said["changes"]["dataset_dir"] == "."
    assert said["memory"]["hours"]


@pytest.mark.parametrize(
    ("model", "kind", "expected"),
    [
        ("Qwen/Qwen3-8B-Base", "chat_template", {"model/base-with-chat"}),
        ("Qwen/Qwen2.5-7B-Instruct", "alpaca", {"axolotl/format-of-its-own"}),
        ("Qwen/Qwen2.5-7B-Instruct", "chat_template", set()),
    ],
)
def test_what_a_models_name_says_of_it_counts(document, model, kind, expected):
    """A base model may have no chat template; an instruct model has turns of its own."""
    rows = [{"messages": [USER, {**BOT, "content": f"b {n}"}]} for n in range(20)]
    jsonl(Path(), rows, "rows.jsonl")
    data = f"datasets: [{{path: rows.jsonl, type: {kind}}}]"
    _, found = document(f"base_model: {model}\n{data}\nadapter: lora\n")
    assert {"model/base-with-chat", "axolotl/format-of-its-own"} & set(ids(found)) == expected


def test_what_should_fit_is_not_changed_again(document):
    """The smallest change, applied, is not answered with another one."""
    values = {
        "base_model": "NousResearch/Meta-Llama-3.1-8B", "datasets": [{"path": "tatsu-lab/alpaca", "type": "alpaca"}],
        "sequence_len": 8192, "sample_packing": True, "micro_batch_size": 1,
        "gradient_accumulation_steps": 8, "optimizer": "paged_adamw_8bit", "learning_rate": 2e-5,
        "bf16": "auto", "gradient_checkpointing": True, "attn_implementation": "flash_attention_2",
        "output_dir": "out", "num_epochs": 1,
    }  # fmt: skip
    code, said = document(yaml.safe_dump(values), "RTX 4090")
    assert (code, said["memory_with_change"]["fits"]) == (3, "may_fit")
    assert "should fit" in said["summary"]
    code, again = document(yaml.safe_dump(values | said["changes"]), "RTX 4090")
    assert (code, again["summary"].startswith("Should fit: ")) == (0, True)
    assert set(again["changes"]).isdisjoint({*said["change"], "sequence_len"})


TRL_KEYS = {
    "model_name_or_path": "Qwen/Qwen2.5-7B-Instruct", "dataset_name": "acme/x", "use_peft": True,
    "learning_rate": 1e-4, "lora_r": 16,
}  # fmt: skip
LLAMAFACTORY = {
    "model_name_or_path": "Qwen/Qwen3-8B", "stage": "sft", "do_train": True, "lora_rank": 8,
    "finetuning_type": "lora", "dataset": "x", "template": "qwen3", "cutoff_len": 2048,
}  # fmt: skip
AXOLOTL = {
    "base_model": "NousResearch/Llama-2-7b-hf", "adapter": "qlora", "load_in_4bit": True,
    "learning_rate": 1e-4, "datasets": [{"path": "x.jsonl", "type": "alpaca"}], "lora_r": 8,
}  # fmt: skip
FILES = {"trl": TRL_KEYS, "llamafactory": LLAMAFACTORY, "axolotl": AXOLOTL}
AX = "base_model: x\nadapter: lora\n"
SECRET = "hunter2-hunter2"


def said(path):
    """Everything that is said of a file: page, JSON, plan."""
    report = ConfigurationReport(read_file(path), stated_hardware("RTX 4090", from_flag=True)[0])
    page, document = io.StringIO(), io.StringIO()
    print_configuration(report, Console(file=page, width=80))
    with contextlib.redirect_stdout(document):
        print_json(report.document)
    assert json.loads(document.getvalue(), parse_constant=pytest.fail)
    parts = [page.getvalue(), document.getvalue()]
    plan = path.with_name("new.yaml")
    plan.unlink(missing_ok=True)
    if report.carried is not None:
        parts += [*write_carried(report, plan), plan.read_text("utf-8")]
    return "\n".join(parts)


def written(folder, text, name="job.yaml"):
    path = folder / name
    path.write_text(text if isinstance(text, str) else json.dumps(text), "utf-8")
    return path


@pytest.fixture
def soon():
    """Fails if the test computes for long: what is tried here took minutes."""
    began_s = time.process_time()
    yield
    assert time.process_time() - began_s < 20


def laughs(first, each):
    """Aliases of aliases: each line doubles what is meant."""
    return AX + first + "".join(each.format(at, at - 1) for at in range(1, 40))


@pytest.mark.parametrize(
    "text",
    [
        AX + "<<: &a [*a]\n",
        AX + "z: {<<: &a [*a, *a]}\n",
        laughs("a0: &a0 [1, 1]\n", "a{0}: &a{0} [*a{1}, *a{1}]\n"),
        laughs("a0: &a0 {k: v}\n", "a{0}: &a{0} [*a{1}, *a{1}]\n") + "z: {<<: *a39}\n",
        laughs("a0: &a0 {k: v}\n", "a{0}: &a{0} {{<<: [*a{1}, *a{1}]}}\n"),
    ],
)
def test_aliases_without_end_are_told(tmp_path, soon, text):
    """A merge of a list that holds itself, and a billion values of forty lines."""
    try:
        assert read_file(written(tmp_path, text)).values["a39"] == {"k": "v"}
    except InputError as refused:
        assert re.search("aliases followed|not valid YAML", str(refused))  # noqa: PT017 - or this


def test_halves_of_a_character_are_joined_or_refused(tmp_path):
    """JSON writes an emoji as two halves; one alone goes into no plan."""
    assert (
        read_file(written(tmp_path, AX + 'run: "\\ud83d\\ude00"\n')).values["run"] == "\U0001f600"
    )
    with pytest.raises(InputError, match=r"yaml:\d+:\d+: half of a character"):
        read_file(written(tmp_path, AX + 'run: "\\ud83d"\n'))


@pytest.mark.parametrize("tool", FILES)
def test_thousands_of_misspelt_keys_are_answered_soon(tmp_path, soon, tool):
    more = {f"lora_alph{number}": 1 for number in range(1200)}
    assert "lora_alph0" in said(written(tmp_path, FILES[tool] | more))


def test_thousands_of_flags_and_many_changes_of_a_long_text_are_read_and_made_soon(soon):
    """Each change parses the text: beyond some work it is written anew, with the same values."""
    flags = " ".join(f"--a{number} 1" for number in range(50_000))
    line = command_line(f"trl sft {flags} --lora-r 8")
    assert (line.flags["lora_r"], len(line.flags)) == (["8"], 50_001)
    values = {f"key{number}": number for number in range(3000)}
    changes = {f"key{number}": None for number in range(1500)}
    new = yaml.safe_load(edited(yaml.safe_dump(values), changes))
    assert new == {key: value for key, value in values.items() if key not in changes}


@pytest.mark.parametrize("key", ["²", "a.²", "datasets.²", "9" * 500, "", ".", "datasets.0.path"])
@pytest.mark.parametrize("tool", FILES)
def test_odd_names_of_keys_are_names(tmp_path, tool, key):
    """Only plain digits are a place in a list, and not thousands of them."""
    assert steps(key)
    assert said(written(tmp_path, FILES[tool] | {key: 1}))
    assert steps("9" * 5000) == ("9" * 5000,)


NUMBERS = {
    "trl": ("per_device_train_batch_size", "num_train_epochs", "save_steps", "max_grad_norm"),
    "llamafactory": ("cutoff_len", "lora_rank", "val_size", "warmup_steps", "adam_beta1"),
    "axolotl": ("micro_batch_size", "num_epochs", "sequence_len", "saves_per_epoch", "lora_alpha"),
}


@pytest.mark.parametrize("value", ["nan", ".inf", "1e400", "1e308", "1" + "0" * 40, "-5", "[[]]"])
@pytest.mark.parametrize(("tool", "key"), [(tool, key) for tool in FILES for key in NUMBERS[tool]])
def test_numbers_beyond_measure_are_not_carried(tmp_path, tool, key, value):
    text = yaml.safe_dump({name: one for name, one in FILES[tool].items() if name != key})
    assert said(written(tmp_path, f"{text}{key}: {value}\n"))


@pytest.mark.parametrize("tool", FILES)
def test_a_secret_of_a_file_is_shown_nowhere(tmp_path, tool):
    """By its key, by one around it, by its form, behind a misspelt key beside it."""
    lines = [
        yaml.safe_dump(FILES[tool]),
        f"hub_token: {SECRET}  # private",
        f"wandb_api_key: '{SECRET}'",
        "lora_alfa: 3",
        f"hf_token: [{SECRET}]",
        f"mlflow_password: {{a: {SECRET}}}",
        f"run_name: hf_{'aB3' * 12}",
        f"output_dir: https://user:{SECRET}@host/x",
    ]
    found = said(written(tmp_path, "\n".join(lines)))
    assert (SECRET in found, "aB3aB3" in found, "hub_token" in found) == (False, False, True)


def test_a_key_that_is_there_twice_is_an_error_that_shows_no_value(tmp_path):
    """The place of the second one, and no secret."""
    text = f"{AX}hub_token: x\nhub_token: {SECRET}\n"
    with pytest.raises(InputError, match='duplicate key "hub_token') as refused:
        read_file(written(tmp_path, text))
    assert SECRET not in str(refused.value)
    assert refused.value.faults[0].where.endswith("job.yaml:4:1")


@pytest.mark.parametrize("name", ["job.sh", "job.yaml"])
def test_what_the_machine_holds_is_not_read(tmp_path, monkeypatch, name):
    """No variable of the environment is looked up: the text itself is shown."""
    monkeypatch.setenv("DATABASE_URL", f"postgres://u:{SECRET}@h/db")
    values = TRL_KEYS | {"dataset_name": "${DATABASE_URL}"}
    flags = " ".join(f"--{key} {value}" for key, value in values.items())
    texts = {
        "job.sh": f"trl sft {flags} --hub_token {SECRET}\n",
        "job.yaml": yaml.safe_dump(values),
    }
    found = said(written(tmp_path, texts[name], name))
    assert (SECRET in found, "${DATABASE_URL}" in found) == (False, True)


def test_a_pattern_over_a_whole_disk_ends(tmp_path, soon):
    """The last part of a path alone may be a pattern, which finds its files."""
    (tmp_path / "data").mkdir()
    for name in ("b.jsonl", "a.jsonl", ".hidden.jsonl"):
        (tmp_path / "data" / name).write_text("{}")
    file = read_file(written(tmp_path, TRL_KEYS))
    found = locate_set(file, "json", files=["data/*.jsonl"])
    assert [path.name for path in found["files"]] == ["a.jsonl", "b.jsonl"]
    for pattern in ("/*/*/*/*/*/*/*/*", "../../../*/*/*/*/*/*", "**/**/**", "[[[[*", "*\0*"):
        locate_set(file, "json", files=[pattern])


@pytest.mark.parametrize("named", ["pipe", "/dev/zero", "/proc/self/mem", "loop", "..", "~nobody1"])
@pytest.mark.parametrize("tool", FILES)
def test_data_that_are_none_are_told(tmp_path, soon, tool, named):
    """A pipe, a device, a link to itself: nothing waits for them or reads them to their end."""
    os.mkfifo(tmp_path / "pipe")
    os.symlink("loop", tmp_path / "loop")
    values = {
        "trl": TRL_KEYS | {"dataset_name": named},
        "axolotl": AXOLOTL | {"datasets": [{"path": "json", "data_files": [named], "type": "x"}]},
        "llamafactory": LLAMAFACTORY | {"dataset": "d", "dataset_dir": "."},
    }[tool]
    written(tmp_path, {"d": {"file_name": named}}, "dataset_info.json")
    for more in ({}, {next(iter(values)): named}):
        assert said(written(tmp_path, values | more))


@pytest.mark.parametrize(
    ("seed", "count", "least"),
    [(21, 40, 12), *(pytest.param(seed, 2500, 800, marks=pytest.mark.long) for seed in range(4))],
)
def test_no_mutated_file_ends_in_a_bug(tmp_path, monkeypatch, seed, count, least):
    """Page, JSON and plan of mutated files of the three tools."""
    monkeypatch.chdir(tmp_path)
    mutator, whole = Mutator(random.Random(seed)), list(FILES.values())
    path, answered = tmp_path / "job.yaml", 0
    for _ in range(count):
        changed = mutator.value(mutator.dice.choice(whole), whole)
        path.write_bytes(mutator.dice.choice((mutator.as_yaml, mutator.as_json))(changed))
        try:
            answered += bool(said(path))
        except AdviseError:
            continue
        except OSError as error:  # such as a name that is too long: the command says it
            assert refused_by_system(error)  # noqa: PT017 - or this
    assert answered > least
