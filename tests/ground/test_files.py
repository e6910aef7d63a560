"""Files of anybody's are read within limits."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from advisor.ground.errors import InputError
from advisor.ground.files import bytes_of, text_of
from tests.fake_model import write_fake_model

CONFIG = {
    "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64,
    "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 256,
}  # fmt: skip


def test_a_regular_file_is_read(tmp_path):
    """As `Path.read_text` does, line ends included; a link to one counts as the file."""
    path = tmp_path / "a"
    path.write_bytes("é\r\nb\rc\n".encode())
    (tmp_path / "link").symlink_to(path)
    for one in (path, tmp_path / "link"):
        assert text_of(one) == path.read_text("utf-8")
        assert bytes_of(one, most_bytes=8) == path.read_bytes()


@pytest.mark.parametrize("kind", ["pipe", "device", "large"])
def test_what_never_ends_is_refused(tmp_path, kind):
    """Under both names: an input that is wrong, and a file that cannot be read."""
    path = tmp_path / "a"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.write_bytes(b"1234")
    for error in (InputError, OSError):
        with pytest.raises(error) as caught:
            bytes_of(path, most_bytes=3)
        expected = "is larger than 0 MiB" if kind == "large" else "is not a regular file"
        assert caught.value.strerror == expected
        assert f"{path}: {expected}" in caught.value.text()


def test_a_folder_is_an_error_of_the_system(tmp_path):
    """As where it is opened."""
    with pytest.raises(IsADirectoryError):
        bytes_of(tmp_path)


LIMITED = ("bash", "-c", 'ulimit -v 3000000; exec "$@"', "-")  # KiB
FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja",
         "generation_config.json", "README.md", "special_tokens_map.json")  # fmt: skip


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_a_model_folder_with_an_endless_file_ends(tmp_path, name, kind):
    """An answer and a check end, with 0 or 2, and never take more than some memory."""
    folder = tmp_path / "model"
    write_fake_model(folder, CONFIG)
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name) if kind == "pipe" else (folder / name).symlink_to("/dev/zero")
    rows = [{"prompt": f"Question {n}?", "completion": f"Answer {n}."} for n in range(20)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    codes = []
    for words in (
        ("--json", "--task", "qa", "--model", "./model", "--gpu", "none"),
        ("check", "train.jsonl", "--model", "./model"),
    ):
        done = subprocess.run(
            [*LIMITED, sys.executable, "-m", "advisor", *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )  # fmt: skip
        assert done.returncode in (0, 2), (words, done.stderr)
        codes.append(done.returncode)
    if name == "config.json":
        assert codes[0] == 2
