"""Situations drawn by a seed, and what the command and the page say of each.

`python -m tests.site.draw --count 200 --seed 7 --site DIR` compares them by hand.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from advisor.ruleset.facts import Fact, load_facts
from advisor.situation.catalogue import known_ids

ASK = Path(__file__).with_name("ask.mjs")
TYPES = ("choice", "number", "flag")
GPUS = ("RTX 3060", "RTX 4090", "2 x RTX 3090", "T4", "A100 80GB", "8 x H100", "MI300X")
GPUS += ("Apple M3 Max 64GB", "GTX 1080 Ti", "unknown", "B200", "RTX 9999")
MODELS = ("llama 3.1 8b", "Qwen/Qwen3-8B-AWQ", "my-org/model-70b", "gpt-4o", "bert-base-uncased")
# Keys, values and forms that are refused. (Text that is no YAML at all is refused in the words of
# the parser, which is another one in the page.)
BROKEN: tuple[Any, ...] = (
    {"task": "qa", "modle": "x"}, {"task": "poetry"}, {"task": "qa", "data": {"rows": -1}}, {}, [],
    {"task": "qa", "budget": "a lot"}, {"gpu": "RTX 4090"}, "qa", {"task": "qa", "gpu": ["T4"]},
    {"task": ["qa"]}, {"task": "qa", "gpu": "T4", "signals": {"telepathy": True}}, {"task": "é\u2028"}, None,
)  # fmt: skip


def situations(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Answers with a GPU that is stated and no path."""
    drawn = random.Random(seed)
    facts = [fact for fact in load_facts().values() if fact.type in TYPES and _place(fact)]
    models = [*known_ids(), *MODELS]
    for _ in range(count):
        answers: dict[str, Any] = {"gpu": drawn.choice(GPUS)}
        share = drawn.choice((0.1, 0.3, 0.6))
        if drawn.random() < 0.7:
            answers["model"] = drawn.choice(models)
        for fact in facts:
            if fact.id == "task" or drawn.random() < share:
                _put(answers, fact, _value(drawn, fact))
        yield answers


def _value(drawn: random.Random, fact: Fact) -> Any:
    if fact.type == "choice":
        return drawn.choice(list(fact.values))
    if fact.type == "flag":
        return drawn.random() < 0.5
    value = round(10 ** drawn.uniform(0, 4.5), drawn.choice((0, 1)))
    return int(value) if fact.integer else value


def _place(fact: Fact) -> str:
    """Its key in an answers file; the card is drawn as a name."""
    place = f"signals.{fact.id}" if fact.signal else fact.answer or ""
    return "" if place.startswith("gpu") else place


def _put(answers: dict[str, Any], fact: Fact, value: Any) -> None:
    head, _, rest = _place(fact).partition(".")
    if not rest:
        answers.setdefault(head, value)
    elif isinstance(inside := answers.setdefault(head, {}), dict):
        inside[rest] = value


def as_text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)


def by_command(*words: str, given: str = "", folder: Path | None = None) -> tuple[str, int]:
    """Standard output and exit code of the command."""
    environment = {**os.environ, "ADVISE_RUNS": "off"}
    environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent.parent)
    done = subprocess.run(
        [sys.executable, "-m", "advisor", *words],
        input=given, capture_output=True, encoding="utf-8", cwd=folder, env=environment, timeout=120,
    )  # fmt: skip
    return done.stdout, done.returncode


def by_page(site: Path, requests: list[tuple[str, Any]]) -> list[dict[str, Any]]:
    """What the Python of a built page answers in Node; the first tells of its start."""
    lines = "".join(json.dumps([name, as_text(body)]) + "\n" for name, body in requests)
    done = subprocess.run(
        ["node", str(ASK), str(site.resolve())],
        input=lines, capture_output=True, encoding="utf-8", timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--site", type=Path, required=True)
    given = parser.parse_args()
    asked = [*situations(given.seed, given.count), *BROKEN]
    started, *found = by_page(given.site, [("advise", one) for one in asked])
    took, different = [], 0
    for answers, page in zip(asked, found, strict=True):
        start = time.perf_counter()
        text, code = by_command("--json", "--answers", "-", given=as_text(answers))
        took.append(1000 * (time.perf_counter() - start))
        if (text, code) != (page["text"], page["exit"]):
            different += 1
            folder = Path(tempfile.mkdtemp(prefix="differs-"))
            (folder / "answers.json").write_text(json.dumps(answers), "utf-8")
            (folder / "command.json").write_text(text, "utf-8")
            (folder / "page.json").write_text(page["text"], "utf-8")
            print(f"exit {code} and {page['exit']}: {folder}")
    ours = sorted(page["ms"] for page in found[1:])
    print(
        f"{len(asked)} situations, {different} differ; codes {sorted({p['exit'] for p in found})}"
    )
    print(
        f"start {started['ms']:.0f} ms, first {found[0]['ms']:.0f} ms, next {median(ours):.0f} ms"
        f" (at most {ours[-1]:.0f}); the command {median(took):.0f} ms"
    )
    return int(different > 0)


if __name__ == "__main__":
    sys.exit(main())
