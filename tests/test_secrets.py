"""A secret in a plan, in answers or behind a flag is refused, and said by nobody again."""

import json
import time

import pytest

from advisor.ground.errors import AdviseError, InputError
from advisor.ground.terminal import find_secrets, is_secret_key, mask_secrets

# Made up, in the forms that services give out.
SECRETS = {
    "HF_TOKEN": "hf_" + "aB3" * 11 + "d",
    "OPENAI_API_KEY": "sk-proj-" + "x1Y2" * 8,
    "GITHUB_TOKEN": "ghp_" + "a1B2" * 9,
    "AWS_ACCESS_KEY_ID": "AKIA" + "ABCD1234" * 2,
    "WANDB_API_KEY": "0123456789abcdef" * 2 + "01234567",
    "under the name": "https://user:pa55word@host.example/x",
}
PLAN = """version: 1
name: x
model: m
data: {{path: d.jsonl}}
stages: [{{name: sft, objective: sft, update: lora{stage}}}]
{more}"""
ROWS = '{"prompt": "a", "completion": "b"}\n' * 12


def test_keys_of_secrets_are_told_from_keys_with_tokens_in_them():
    """Texts of a tokenizer and counts of tokens are no secrets."""
    for name in ("hub_token", "token", "api_key", "WANDB_API_KEY", "password", "aws_secret_key"):
        assert is_secret_key(name)
    for name in ("eos_token", "pad_token", "max_new_tokens", "tokens", "keep", "tokenizer", "key"):
        assert not is_secret_key(name)


def test_what_only_looks_like_a_secret_is_left_alone():
    """A commit, a folder of the hub's cache, names of tasks and columns, a switch."""
    commit = SECRETS["WANDB_API_KEY"]
    harmless = {
        "revision": commit,
        "model": f"/cache/models--a--b/snapshots/{commit}",
        "tasks": {"password": "resets.jsonl"},
        "data": {"mapping": {"prompt": "token"}},
        "names": ["sk-finetune-2026-customer-support-v2", "hf_short", "https://host/a@b:c"],
        "token": True,
        "password": None,
    }
    assert list(find_secrets(harmless)) == []


@pytest.mark.parametrize("variable", SECRETS)
@pytest.mark.parametrize("place", ["plan", "trl", "set", "answers", "flag"])
def test_a_secret_is_refused_and_not_repeated(call, tmp_path, place, variable):
    """Exit code 2, where it stands, which variable of the environment it belongs into."""
    secret = SECRETS[variable]
    (tmp_path / "d.jsonl").write_text(ROWS)
    plan = {"plan": f"model_note: {secret}", "trl": "", "set": ""}
    stage = f", trl: {{run_name: '{secret}'}}" if place == "trl" else ""
    (tmp_path / "p.yaml").write_text(PLAN.format(stage=stage, more=plan.get(place, "")))
    (tmp_path / "a.yaml").write_text(f"task: qa\nmodel: {secret}\n")
    arguments = {
        "plan": ["run", "p.yaml"],
        "trl": ["run", "p.yaml"],
        "set": ["run", "p.yaml", "--set", f"stages.sft.trl.run_name={secret}"],
        "answers": ["--json", "--answers", "a.yaml"],
        "flag": ["--json", "--task", "qa", "--model", secret],
    }
    code, out, err = call(*arguments[place])
    said = out + err
    assert (code, "looks like a secret" in err, variable in err) == (2, True, True)
    assert (secret in said, "pa55word" in said, (tmp_path / "runs").exists()) == (False,) * 3


def test_a_secret_is_known_by_its_key_too(call, tmp_path):
    """Whatever `hub_token` holds: refused before anything is written, and not repeated."""
    (tmp_path / "d.jsonl").write_text(ROWS)
    (tmp_path / "p.yaml").write_text(PLAN.format(stage=", trl: {hub_token: hunter2}", more=""))
    for arguments in (
        ["run", "p.yaml"],
        ["estimate", "p.yaml"],
        ["run", "p.yaml", "--set", "stages.sft.trl.hub_token=hunter2"],
    ):
        code, out, err = call(*arguments)
        assert (code, "HF_TOKEN" in err, "hunter2" in out + err) == (2, True, False)


def test_messages_mask_what_they_quote():
    """An error of a library or of ours that holds a secret is shown without it."""
    for secret in SECRETS.values():
        if secret == SECRETS["WANDB_API_KEY"]:  # 40 hexadecimal digits: as a rule, a commit
            continue
        error = InputError(f"cannot reach {secret} now", hint=json.dumps({"a": secret}))
        assert isinstance(error, AdviseError)
        assert secret not in error.text()
        assert "***" in error.text()
    assert mask_secrets("https://user:pa55word@host/x") == "https://***@host/x"
    assert mask_secrets("a@b, http://host:80/x, sk-short") == "a@b, http://host:80/x, sk-short"


@pytest.mark.parametrize("piece", ["sk-", "sk-a", "eyJ-", "://a:", "-----BEGIN ", "a_"])
def test_no_text_takes_long_to_look_through(piece):
    """A long value made for it costs no more than its length."""
    text = piece * (200_000 // len(piece))
    began_s = time.process_time()
    assert mask_secrets(text) == text
    assert not list(find_secrets({text: text}))
    assert time.process_time() - began_s < 1
