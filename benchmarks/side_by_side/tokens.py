"""Rows as our trainers prepare them, for other tools: MODEL CHATS FOLDER.

Writes FOLDER/tokens/train.jsonl and FOLDER/dataset, and prints how many tokens there are.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from advisor.data import read_examples
from trainers.rows import ANSWERS, IGNORED, Templater
from trainers.rows.row import LeftOut


def main() -> None:
    model, chats, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    templater = Templater(AutoTokenizer.from_pretrained(model))
    built = ANSWERS.rows(read_examples(chats), templater, LeftOut())
    found = [row for row in built if row.tokens <= 1024]
    rows = [
        {
            "input_ids": list(row.input_ids),
            "attention_mask": [1] * row.tokens,
            "labels": [IGNORED, *row.labels[1:]],
        }
        for row in found
    ]
    tokens = folder / "tokens"
    tokens.mkdir()
    lines = [json.dumps({key: row[key] for key in ("input_ids", "labels")}) for row in rows]
    (tokens / "train.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder / "dataset"))
    counts = {
        "rows": len(rows),
        "all_tokens": sum(row.tokens for row in found),
        "learned": sum(row.learned for row in found),
        "longest": max(row.tokens for row in found),
    }
    print(json.dumps(counts))


main()
