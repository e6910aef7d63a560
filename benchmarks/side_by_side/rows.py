"""The rows that every tool trains on: conversations with alpaca's lengths, or a file of your own.

Each tool learns the same tokens: ours reads the conversations, the others get what ours prepared
from them, as token ids and labels. So their own preparation costs them nothing.
"""

import json
import os
import random
import sys
from dataclasses import dataclass
from pathlib import Path

from advisor.ground.resources import PACKAGE, trainers_root
from benchmarks.measuring import run_process

DATA = "ADVISE_BENCHMARK_DATA"  # environment: an alpaca file instead
# Twentieths of the distribution of tokens in 1,000 alpaca rows (the demonstration file of
# LLaMA-Factory, by the tokenizer of SmolLM2): of instruction and input, and of the output.
QUESTION_TOKENS = (4, 7, 8, 9, 10, 11, 11, 12, 13, 13, 14, 15, 17, 18, 20, 21, 24, 27, 32, 42, 168)
ANSWER_TOKENS = (
    2, 8, 11, 14, 19, 25, 33, 47, 64, 84, 106, 129, 161, 188, 218, 260, 290, 322, 362, 402, 594,
)  # fmt: skip
WORDS_PER_TOKEN = 0.75
PLANNED_ROWS = 1000  # the plan of our own defaults is made for so many rows


@dataclass(frozen=True)
class Rows:
    """The files of one benchmark, and what is in them."""

    chats: Path  # our input: one conversation in each line
    many: Path  # the same, PLANNED_ROWS of them, for the advice
    tokens: Path  # a folder with train.jsonl: input_ids and labels, as TRL takes them
    dataset: Path  # the same on disk as LLaMA-Factory takes them
    rows: int
    all_tokens: int
    learned: int  # tokens that the loss counts
    longest: int


def make_rows(folder: Path, model: str, count: int) -> Rows:
    """Write the rows, tokenised as our trainers prepare them for this model."""
    chats = conversations(PLANNED_ROWS)
    few, many = folder / "rows.jsonl", folder / "many.jsonl"
    for path, part in ((few, spread(chats, count)), (many, chats)):
        path.write_text("".join(json.dumps({"messages": chat}) + "\n" for chat in part), "utf-8")
    arguments = [model, str(few), str(folder)]
    done = run_process(
        [sys.executable, "-m", "benchmarks.side_by_side.tokens", *arguments],
        env={"PYTHONPATH": os.pathsep.join([str(trainers_root()), os.getcwd()])},
    )
    counts = json.loads(done.stdout.strip().splitlines()[-1])
    return Rows(few, many, folder / "tokens", folder / "dataset", **counts)


def spread(chats: list[list[dict[str, str]]], count: int) -> list[list[dict[str, str]]]:
    """`count` of the conversations, over all lengths of their answers, in a fixed order."""
    ordered = sorted(chats, key=lambda chat: len(chat[-1]["content"]))
    chosen = [ordered[(2 * place + 1) * len(ordered) // (2 * count)] for place in range(count)]
    random.Random(7).shuffle(chosen)
    return chosen


def conversations(count: int) -> list[list[dict[str, str]]]:
    """One question and one answer each: of the file that DATA names, else with its lengths and
    words of the bundled demonstration.
    """
    if given := os.environ.get(DATA):
        return [
            [
                {"role": "user", "content": f"{row['instruction']}\n{row['input']}".strip()},
                {"role": "assistant", "content": row["output"]},
            ]
            for row in json.loads(Path(given).read_text("utf-8"))[:count]
            if row["output"].strip()
        ]
    lines = (PACKAGE / "demo" / "support.jsonl").read_text("utf-8").splitlines()
    demo = [json.loads(line)["messages"] for line in lines]
    asked = " ".join(chat[-2]["content"] for chat in demo).split()
    answered = " ".join(chat[-1]["content"] for chat in demo).split()
    draw = random.Random(1)

    def text(words: list[str], lengths: tuple[int, ...]) -> str:
        part = draw.randrange(len(lengths) - 1)
        size = max(1, round(draw.uniform(*lengths[part : part + 2]) * WORDS_PER_TOKEN))
        start = draw.randrange(len(words) - size)
        return " ".join(words[start : start + size])

    return [
        [
            {"role": "user", "content": text(asked, QUESTION_TOKENS)},
            {"role": "assistant", "content": text(answered, ANSWER_TOKENS)},
        ]
        for _ in range(count)
    ]
