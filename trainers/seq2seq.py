"""Sequence-to-sequence models (T5, BART, NLLB, Marian, Pegasus): an encoder reads the input, a
decoder learns to write the output, whole or with LoRA.

A stage with objective sft and `head: seq2seq`. The result loads with plain AutoModelForSeq2SeqLM
(or AutoPeftModelForSeq2SeqLM). Translation models that write many languages want to know which:
`source_language` and `target_language`, as their tokenizer calls them (eng_Latn, en_XX).
"""

from __future__ import annotations

import re
from typing import Any

from advisor.ground.errors import Fault, InputError, did_you_mean
from trainers.evaluation.generation import RewritingEvaluator
from trainers.evaluation.saved_result import SEQ2SEQ
from trainers.job import Tokenizer
from trainers.job.job import Job
from trainers.rows import Prepared
from trainers.rows.heads import REWRITINGS, Rewriting, rewriting_columns
from trainers.stage.objective import Build, Opened, WithHead
from trainers.start.loading import load_base
from trainers.start.model_files import model_config

UPDATES = ("full", "lora")
CODE = re.compile(r"[a-z]{2,3}_[A-Z][A-Za-z]+")  # of a language: en_XX, eng_Latn
LANGUAGES = ("source_language", "target_language")


class Seq2Seq(WithHead[Rewriting]):
    """Learns to write the output of each input."""

    trained_by = "trainers.stage.trl_trainer:Seq2Seq"
    kind = REWRITINGS
    columns = staticmethod(rewriting_columns)
    evaluated_by = RewritingEvaluator
    head = SEQ2SEQ
    head_name = "seq2seq"
    why_not_packed = "an encoder would read the texts of other rows, too"
    measures_loss = True

    def faults(self, job: Job) -> list[Fault]:
        found = super().faults(job)
        if job.stage.update not in UPDATES:
            what = f"update {job.stage.update} has no place in a model of an encoder and a decoder"
            allowed = f"update: {' or '.join(UPDATES)} with head: seq2seq"
            found.append(Fault(where=f"stage {job.stage.name}", what=what, allowed=allowed))
        return found

    def rows(self, job: Job, tokenizer: Tokenizer) -> Prepared[Rewriting]:
        set_languages(job, tokenizer)
        return super().rows(job, tokenizer)

    def load(self, opened: Opened[Rewriting]) -> Any:
        """The model, which writes the target language.

        Raises InputError for a model that is no sequence-to-sequence model.
        """
        job, base = opened.job, opened.job.base_model
        config = model_config(job, base)
        if not getattr(config, "is_encoder_decoder", False):
            raise InputError(
                f"seq2seq, and {base} is a {config.model_type}, which has no encoder beside its"
                " decoder",
                where=f"stage {job.stage.name}: head",
                allowed="T5, BART, NLLB, Marian, Pegasus and others of their kind",
                hint="leave `head` out for a model that writes on its own",
            )
        model = load_base(job, opened.device, None, head=SEQ2SEQ)
        language = job.options.get("target_language")
        if language is not None:
            model.generation_config.forced_bos_token_id = opened.tokenizer.get_vocab()[language]
        return model

    def trainer_parts(self, build: Build[Rewriting], config: Any) -> dict[str, Any]:
        from transformers import DataCollatorForSeq2Seq

        # The model shifts the output by one place: that is what its decoder reads.
        collator = DataCollatorForSeq2Seq(build.tokenizer, model=build.model)
        return {**super().trainer_parts(build, config), "data_collator": collator}


def set_languages(job: Job, tokenizer: Tokenizer) -> None:
    """Tell the tokenizer of a model of many languages which it reads and which it writes.

    Raises InputError if it needs to know and the stage does not say, or says an unknown one.
    """
    given = {name: job.options.get(name) for name in LANGUAGES}
    at, base = f"stage {job.stage.name}", job.base_model
    if not hasattr(tokenizer, "src_lang") or not hasattr(tokenizer, "tgt_lang"):
        if named := [name for name in LANGUAGES if given[name]]:
            raise InputError(
                f"{' and '.join(named)}: the tokenizer of {base} knows no languages",
                where=at,
                hint="write the task in front of each input instead, as T5 wants it",
            )
        return
    special = (entry.content for entry in tokenizer.added_tokens_decoder.values() if entry.special)
    known = sorted(token for token in special if CODE.fullmatch(token))
    faults = []
    for name, language in given.items():
        if language is None or language not in known:
            what, hint = "is not said", f"--set stages.0.{name}=... says it"
            if language is not None:
                what, hint = f"is {language}, which it does not know", did_you_mean(language, known)
            what = f"{base} reads and writes many languages, and {name} {what}"
            allowed = f"{', '.join(known[:8])}, ... ({len(known)} in all)"
            faults.append(Fault(where=at, what=what, allowed=allowed, hint=hint))
    if faults:
        raise InputError(faults=faults)
    languages: Any = tokenizer
    languages.src_lang, languages.tgt_lang = given["source_language"], given["target_language"]
