"""Our TEMPLATEs in Go itself. Needs a Go toolchain on PATH (Debian: golang-go)."""

import json
import os
import random
import shutil
import subprocess
from importlib.util import find_spec
from itertools import islice
from pathlib import Path

import pytest

from advisor.data.templates.chat_text import ChatText
from advisor.extras.gguf.template import (
    NotExpressible,
    conversations,
    go_template,
    ollama_template,
    written_by_ollama,
)
from tests.extras.gguf.chat_templates import STYLES
from tests.extras.gguf.test_ollama_template import TODAY, TOKENS

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(shutil.which("go") is None, reason="there is no Go toolchain on PATH"),
]
SOURCE = Path(__file__).with_name("ollama_text.go")


@pytest.fixture(scope="module")
def go(tmp_path_factory):
    """Conversations -> their texts by Go."""
    program = tmp_path_factory.mktemp("go") / "ollama_text"
    environment = {**os.environ, "GOCACHE": str(program.parent / "cache"), "GO111MODULE": "off"}
    subprocess.run(["go", "build", "-o", program, SOURCE], check=True, env=environment)

    def texts(requests):
        lines = "".join(json.dumps(request) + "\n" for request in requests)
        done = subprocess.run([program], input=lines, capture_output=True, text=True, check=True)
        return [json.loads(line) for line in done.stdout.splitlines()]

    return texts


def sources():
    """The styles of these tests, and the templates of real families that TRL carries."""
    yield from STYLES.items()
    if find_spec("trl") is not None:
        import trl

        for path in sorted((Path(trl.__file__).parent / "chat_templates").glob("*.jinja")):
            yield path.stem, path.read_text("utf-8")


def test_go_writes_what_was_compared(go):
    """For every template that can be expressed: random conversations, answers to be continued."""
    requests, expected, names = [], [], set()
    for name, source in sources():
        try:
            shape = ollama_template(ChatText(source, TOKENS), today=TODAY).shape
        except NotExpressible:
            continue
        names.add(name)
        for turns in islice(conversations(shape, random.Random(name)), 40):
            for one in (turns, [*turns, {"role": "assistant", "content": "yes"}]):
                requests.append({"template": go_template(shape), "messages": one})
                expected.append(written_by_ollama(shape, one))
    assert len(names) >= len(STYLES)
    for request, theirs, own in zip(requests, go(requests), expected, strict=True):
        assert theirs == own, request
