"""A secret in a plan, in answers or behind a flag is refused, and said by nobody again."""

import json
import time

import pytest

from advisor.ground.errors import InputError
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
    secret = {"hub_token", "token", "api_key", "WANDB_API_KEY", "password", "aws_secret_key"}
    no = {"eos_token", "pad_token", "max_new_tokens", "tokens", "keep", "tokenizer", "key"}
    assert {name for name in secret | no if is_secret_key(name)} == secret


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


PLACES = {  # what stands in the stage and in the plan, and what is typed
    "plan": ("", "model_note: {}", "run p.yaml"),
    "trl": (", trl: {{run_name: '{}'}}", "", "run p.yaml"),
    "set": ("", "", "run p.yaml --set stages.sft.trl.run_name={}"),
    "answers": ("", "", "--json --answers a.yaml"),
    "flag": ("", "", "--json --task qa --model {}"),
}


@pytest.mark.parametrize(("variable", "secret"), SECRETS.items(), ids=SECRETS)
@pytest.mark.parametrize("place", PLACES)
def test_a_secret_is_refused_and_not_repeated(call, tmp_path, place, variable, secret):
    """Exit code 2, where it stands, which variable of the environment it belongs into."""
    stage, more, line = (text.format(secret) for text in PLACES[place])
    (tmp_path / "d.jsonl").write_text(ROWS)
    (tmp_path / "p.yaml").write_text(PLAN.format(stage=stage, more=more))
    (tmp_path / "a.yaml").write_text(f"task: qa\nmodel: {secret}\n")
    code, out, err = call(*line.split())
    assert (code, "looks like a secret" in err, variable in err) == (2, True, True)
    assert [words for words in (secret, "pa55word") if words in out + err] == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    "line", ["run p.yaml", "estimate p.yaml", "run p.yaml --set stages.sft.trl.hub_token=hunter2"]
)
def test_a_secret_is_known_by_its_key_too(call, tmp_path, line):
    """Whatever `hub_token` holds: refused before anything is written, and not repeated."""
    (tmp_path / "d.jsonl").write_text(ROWS)
    (tmp_path / "p.yaml").write_text(PLAN.format(stage=", trl: {hub_token: hunter2}", more=""))
    code, out, err = call(*line.split())
    assert (code, "HF_TOKEN" in err, "hunter2" in out + err) == (2, True, False)


@pytest.mark.parametrize(
    "secret",  # 40 hexadecimal digits are, as a rule, a commit
    [secret for variable, secret in SECRETS.items() if variable != "WANDB_API_KEY"],
)
def test_messages_mask_what_they_quote(secret):
    """An error of a library or of ours that holds a secret is shown without it."""
    text = InputError(f"cannot reach {secret} now", hint=json.dumps({"a": secret})).text()
    assert (secret in text, "***" in text) == (False, True)
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
