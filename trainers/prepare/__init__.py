"""Examples of a data file as what each objective trains on: templates, masks, lengths, the hold-out
split and packing, once for all trainers.

A label of -100 is a token that is read but not learned. Only what the assistant says is learned, up
to and including the token that ends its turn, so that the model learns to stop. Nothing is
shortened or left out without a count.

| objective | kind | a row is |
| --- | --- | --- |
| sft cpt orpo's answers | ANSWERS | Row: input_ids, labels |
| dpo orpo rm | PAIRS | Pair: prompt_ids, chosen_ids, rejected_ids |
| kto | FEEDBACK | Feedback: prompt_ids, completion_ids, label |
| ppo grpo rloo | PROMPTS | Prompt: prompt_ids, messages, answer |
| encoder | classes_kind(names) | Labelled: input_ids, label |
"""

from trainers.prepare.conversation import tokenise
from trainers.prepare.length import fit_rows
from trainers.prepare.packing import PackedBatches, columns, pack
from trainers.prepare.prepared import ANSWERS, Kind, Prepared, prepare_stage_rows
from trainers.prepare.row import IGNORED, Row
from trainers.prepare.split import split_rows
from trainers.prepare.template import Templater

__all__ = [
    "ANSWERS",
    "IGNORED",
    "Kind",
    "PackedBatches",
    "Prepared",
    "Row",
    "Templater",
    "columns",
    "fit_rows",
    "pack",
    "prepare_stage_rows",
    "split_rows",
    "tokenise",
]
