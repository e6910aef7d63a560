"""The exported model asked by Ollama itself, where it is installed: a question of the test,
answered greedily, compared with the answer that the trained model gave then.

The model is made under a name of its own and removed again.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from advisor.ground.errors import TrainingFailed
from advisor.ground.files import folder_name
from advisor.plan.record import RunRecord, StageRecord
from advisor.plan.results import label

HOST, PORT = "127.0.0.1", 11434  # Ollama's own
CREATE_S, ANSWER_S = 600.0, 300.0
MOST_TOKENS = 256
EXACT = ("F16", "BF16", "F32")  # files that answer as the model did


def ollama_is_here() -> bool:
    """Whether Ollama's program is on PATH."""
    return shutil.which("ollama") is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One question with the answer that is expected."""

    model: str  # what Ollama calls it meanwhile
    question: str | None  # None: the run was not judged
    expected: str
    kind: str  # of the .gguf file

    @classmethod
    def of(cls, record: RunRecord, stage: StageRecord, *, kind: str) -> Trial:
        """With a held-out question whose answer ended by itself."""
        samples = stage.evaluation.samples if stage.evaluation is not None else ()
        ended = [one for one in samples if one.tuned and one.prompt and one.tuned_stopped]
        best = min(ended, key=lambda one: len(one.tuned or ""), default=None)
        return cls(
            model=f"{folder_name(f'{record.name}-{label(stage)}').lower()}-trial",
            question=best.prompt if best is not None else None,
            expected=(best.tuned or "").strip() if best is not None else "",
            kind=kind,
        )

    def lines(self, modelfile: Path) -> list[str]:
        """What came of it, in sentences. Raises TrainingFailed if the answer has no end."""
        if self.question is None:
            return ["Ollama was not asked: the run has no sample answer to compare with."]
        try:
            made = subprocess.run(
                ["ollama", "create", self.model, "-f", str(modelfile)],
                capture_output=True, text=True, errors="replace", timeout=CREATE_S, check=False,
            )  # fmt: skip
            if made.returncode != 0:
                why = (made.stderr.strip().splitlines() or ["no reason"])[-1]
                return [f"Ollama has not run this: `ollama create` failed ({why[:200]})."]
            try:
                return self._compared(_asked(self.model, self.question))
            finally:
                subprocess.run(
                    ["ollama", "rm", self.model], capture_output=True, timeout=ANSWER_S, check=False
                )
        except (OSError, ValueError, subprocess.TimeoutExpired, http.client.HTTPException) as error:
            return [f"Ollama has not answered ({error})."]

    def _compared(self, answer: dict[str, Any]) -> list[str]:
        text = str((answer.get("message") or {}).get("content", "")).strip()
        if answer.get("done_reason") != "stop":
            raise TrainingFailed(
                f"Ollama's answer does not end: {MOST_TOKENS} tokens without an end token",
                where=self.model,
                hint="do not serve it, and report this with the Modelfile",
            )
        if text == self.expected:
            return ["Ollama itself answers a question of the test with the same text, and stops."]
        exact = "it should be the same; compare" if self.kind in EXACT else "this file rounds"
        return [
            f"Ollama itself answers and stops; not with the text of the test ({exact}):",
            f"  test:   {self.expected[:200]!r}",
            f"  Ollama: {text[:200]!r}",
        ]


def _asked(model: str, question: str) -> dict[str, Any]:
    """The answer of Ollama's server on this machine. Raises OSError, ValueError."""
    given = os.environ.get("OLLAMA_HOST", "")
    parts = urlsplit(given if "//" in given else f"//{given}")
    host = parts.hostname or HOST
    connection = http.client.HTTPConnection(
        HOST if host == "0.0.0.0" else host,  # noqa: S104 - what a server listens on
        parts.port or PORT,
        timeout=ANSWER_S,
    )
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "stream": False,
        "options": {"temperature": 0, "repeat_penalty": 1, "num_predict": MOST_TOKENS},
    }
    try:
        connection.request(
            "POST", "/api/chat", json.dumps(body), {"Content-Type": "application/json"}
        )
        response = connection.getresponse()
        found = json.loads(response.read())
    finally:
        connection.close()
    if response.status != 200 or not isinstance(found, dict):
        raise OSError(f"{response.status} {str(found)[:200]}")
    return found
