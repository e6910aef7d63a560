"""Examples of a data file as rows to train on: templates, masks, lengths, the split and packing, in
one place for all trainers.

A label of -100 is a token that is read but not learned. Only the assistant's answers are learned,
each up to and including the token that ends its turn, so that the model learns to stop. Whatever is
shortened or left out is counted.

| kind | made from | a row is |
| --- | --- | --- |
| conversation.ANSWERS | conversations, texts | Row: input_ids, labels |
| preference.PAIRS | chosen and rejected answers | Pair: prompt_ids, chosen_ids, rejected_ids |
| preference.FEEDBACK | answers with feedback, pairs | Feedback: prompt_ids, completion_ids, label |
| conversation.PROMPTS | anything with a question | Prompt: prompt_ids, answer |
| heads.REWRITINGS | conversations, chosen answers | Rewriting: input_ids, labels |
| heads.CLASSES | texts with a class | Labelled: input_ids, label |
"""

from trainers.rows.conversation import ANSWERS
from trainers.rows.packing import PackedBatches, dataset_columns, pack
from trainers.rows.row import IGNORED, Kind, Row
from trainers.rows.stage_rows import Prepared
from trainers.rows.template import Templater

__all__ = [
    "ANSWERS",
    "IGNORED",
    "Kind",
    "PackedBatches",
    "Prepared",
    "Row",
    "Templater",
    "dataset_columns",
    "pack",
]
