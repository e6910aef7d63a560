"""Rewards of a stage as a Python file that TRL imports: the verifiers of the trainers, word for
word, and one function for the stage.
"""

from __future__ import annotations

import ast
from typing import Any

from advisor.ground.errors import Fault
from advisor.ground.resources import trainers_root
from advisor.methods.stage import Stage
from advisor.other_tools.writing.job import Job

MODULE = "rewards"
# Verifier -> (its function in trainers/rewards/verifiers.py, its call).
CALLS = {
    "exact": "same_answer(text, expected)",
    "regex": "matches(text, PATTERN, expected)",
    "format": "matches_all(text, PATTERN, expected)",
}
NEEDED = {
    "exact": ("same_answer", "final_answer", "plain_text", "number", "NUMBER", "BOXED"),
    "regex": ("matches",),
    "format": ("matches_all",),
}
OTHER = ("reward_model", "reward", "rewards", "schema", "overlong_tokens", "ngram")


def rewards_fault(stage: Stage, place: str, hint: str) -> Fault | None:
    """Why the rewards of a stage cannot be written; None if they can."""
    verifier = stage.options.get("verifier") or "exact"
    other = [key for key in OTHER if stage.options.get(key) is not None]
    if other or verifier not in CALLS:
        named = other[0] if other else f"verifier: {verifier}"
        return Fault(
            where=place,
            what=f"`{named}` is not written for TRL",
            allowed=f"verifier: {', '.join(CALLS)}",
            hint=hint,
        )
    return None


def add_rewards(job: Job) -> None:
    """The file of the rewards, and the key that names it."""
    options = job.entry.stage.options
    verifier = options.get("verifier") or "exact"
    job.files[f"{MODULE}.py"] = reward_file(verifier, options.get("pattern"))
    job.put("reward_funcs", [f"{MODULE}.reward"], "rewards.py beside this file")
    job.found("verifier")
    job.found("pattern")


def reward_file(verifier: str, pattern: Any) -> str:
    """The Python of a verifier, which needs nothing but Python."""
    source = (trainers_root() / "trainers" / "rewards" / "verifiers.py").read_text("utf-8")
    parts = []
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else None
        name = getattr(node, "name", getattr(target, "id", ""))
        if name in NEEDED[verifier]:
            parts.append(ast.get_source_segment(source, node) or "")
    constant = [f"PATTERN = {pattern!r}"] if pattern is not None else []
    return "\n\n\n".join(
        [
            '"""The reward of an answer: what the verifier of the plan gives."""\n\n'
            "import math\nimport re",
            *constant,
            *parts,
            "def reward(completions, answer=None, **columns):\n"
            '    """1 for each answer that the verifier accepts, else 0."""\n'
            "    scores = []\n"
            "    for place, written in enumerate(completions):\n"
            "        text = written if isinstance(written, str) else written[-1]['content']\n"
            "        expected = answer[place] if answer is not None else ''\n"
            f"        scores.append(1.0 if {CALLS[verifier]} else 0.0)\n"
            "    return scores\n",
        ]
    )
