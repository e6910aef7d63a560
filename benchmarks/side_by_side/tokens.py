"""Rows as our trainers prepare them, for other tools: MODEL CHATS FOLDER.

Writes FOLDER/tokens/train.jsonl and FOLDER/dataset, and prints how many tokens there are.
"""

import json
import sys
from pathlib import Path

from datasets import Dataset, DatasetDict
from transformers import AutoTokenizer

from advisor.data import read_examples
from trainers.rows import ANSWERS, IGNORED, Templater, prepare_stage_rows


def main() -> None:
    model, chats, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    data = prepare_stage_rows(
        list(read_examples(chats)),
        Templater(AutoTokenizer.from_pretrained(model), learn_all=False),
        kind=ANSWERS,
        seq_len=1024,
        truncation="drop",
        holdout=0.0,
        seed=0,
    )
    rows = [
        {
            "input_ids": list(row.input_ids),
            "attention_mask": [1] * row.tokens,
            "labels": [IGNORED, *row.labels[1:]],
        }
        for row in data.train
    ]
    tokens = folder / "tokens"
    tokens.mkdir()
    lines = [json.dumps({key: row[key] for key in ("input_ids", "labels")}) for row in rows]
    (tokens / "train.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(str(folder / "dataset"))
    counts = {
        "rows": len(rows),
        "all_tokens": data.tokens,
        "learned": data.learned_tokens,
        "longest": max(row.tokens for row in data.train),
    }
    print(json.dumps(counts))


main()
