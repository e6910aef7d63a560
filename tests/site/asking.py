"""The page and the command, asked the same.

`python -m tests.site.asking DIR --count 200 --seed 7` compares them on a built page by hand.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

from advisor.situation.answers import answers_document
from tests.advice.situations import random_answers

ROOT = Path(__file__).resolve().parent.parent.parent
ASK = Path(__file__).with_name("ask.mjs")
# Keys, values and forms that are refused. (Text that is no YAML at all is refused in the words of
# the parser, which is another one in the page.)
BROKEN: tuple[Any, ...] = (
    {"task": "qa", "modle": "x"}, {"task": "poetry"}, {"task": "qa", "data": {"rows": -1}}, {}, [],
    {"task": "qa", "budget": "a lot"}, {"gpu": "RTX 4090"}, '"qa"', {"task": "qa", "gpu": ["T4"]},
    {"task": "qa", "gpu": "T4", "signals": {"telepathy": True}}, {"task": "é\u2028"}, None,
)  # fmt: skip


def situations(seed: int, count: int) -> Iterator[dict[str, Any]]:
    """Drawn answers with a GPU that is stated and no file."""
    for one in range(count):
        answers = dict(answers_document(random_answers(1000 * seed + one)))
        if answers["gpu"] == "none":  # the memory of this machine
            answers["gpu"] = "RTX 4090"
        yield answers


def by_command(*words: str, given: Any = "", folder: Path | None = None) -> tuple[str, int]:
    """Standard output and exit code of the command."""
    done = subprocess.run(
        [sys.executable, "-m", "advisor", *words], input=as_text(given), capture_output=True,
        encoding="utf-8", cwd=folder, timeout=120,
        env={**os.environ, "ADVISE_RUNS": "off", "PYTHONPATH": str(ROOT)},
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


def as_text(body: Any) -> str:
    return body if isinstance(body, str) else json.dumps(body)


def differences(site: Path, asked: list[Any]) -> tuple[list[str], list[str]]:
    """Where the page says something else than the command; and how long both took, in words."""
    started, *found = by_page(site, [("advise", one) for one in asked])
    took, wrong = [], []
    for answers, page in zip(asked, found, strict=True):
        start = time.perf_counter()
        text, code = by_command("--json", "--answers", "-", given=answers)
        took.append(1000 * (time.perf_counter() - start))
        if (text, code) != (page["text"], page["exit"]):
            lines = zip(text.splitlines(), page["text"].splitlines(), strict=False)
            first = next((pair for pair in lines if pair[0] != pair[1]), (len(text), code))
            wrong.append(f"{as_text(answers)}: {first}")
    ours = sorted(page["ms"] for page in found[1:])
    codes = sorted({page["exit"] for page in found})
    words = [
        f"{len(asked)} requests, {len(wrong)} differ; exit codes {codes}",
        f"start {started['ms']:.0f} ms, first answer {found[0]['ms']:.0f} ms, next {median(ours):.0f}"
        f" ms (at most {ours[-1]:.0f}); the command {median(took):.0f} ms (at most {max(took):.0f})",
    ]
    return wrong, words


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("site", type=Path)
    parser.add_argument("--count", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    wrong, words = differences(given.site, [*situations(given.seed, given.count), *BROKEN])
    print("\n".join([*wrong, *words]))
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main())
