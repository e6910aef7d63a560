"""Where the reward of an answer comes from: built-in verifiers, reward models, functions of the
user, or several of them with weights.

A verifier says whether an answer is the expected one, contains a pattern, or is JSON that fits a
schema. A penalty is 0 for a good answer and -1 for the worst: one that grows too long, or repeats
itself. The notes of the run name the sources.
"""

from __future__ import annotations

import inspect
import json
import math
import re
import runpy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from msgspec import structs

from advisor.ground.annotated import parse_json
from advisor.ground.errors import Fault, InputError, MachineNotReady, TrainingFailed
from advisor.ground.files import text_of
from advisor.methods import objective
from advisor.methods.rewards import PENALTIES, RewardPart, overlong_tokens, reward_parts
from advisor.methods.rewards import reward_faults as key_faults
from advisor.model_files.folder import folder_faults
from trainers.job import Device, Model, Tokenizer
from trainers.job.evaluating import evaluating
from trainers.job.job import Job
from trainers.rewards.scoring import Answer, Reward, Rewards, Score
from trainers.rows.conversation import Prompt
from trainers.rows.packing import head_outputs
from trainers.start.loading import load_frozen, read_adapter_config, read_tokenizer
from trainers.start.model_files import check_files

NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:[eE][+-]?\d+)?")
BOXED = re.compile(r"\\boxed\{([^{}]*(?:\{[^{}]*\}[^{}]*)*)\}")
FENCED = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)
SCORES = "SequenceClassification"
NGRAM = 3  # words; open-r1's default
NOTHING_SCORES = (
    "verifier: exact, regex, format or json_schema; reward_model: a folder or a stage; reward:"
    " file.py:function; rewards: a list of several"
)
FILES = {"reward": "file.py:function", "schema": "a file with a JSON schema"}
IN_WORDS = {
    "reward": "the user's own code: ",
    "reward_model": "the model ",
    "verifier": "the verifier ",
}


# --------------------------------------------------------------------------- which


def parts_of(job: Job, prompts: Sequence[Prompt] | None = None) -> tuple[RewardPart, ...]:
    """The rewards of a stage: what it says, else the latest reward model of an earlier stage, else
    the verifiable answers of the data; empty if there is nothing.
    """
    parts = reward_parts(job.options)
    if parts:
        return parts
    names = [item.name for item in job.plan.stages]
    earlier = job.plan.stages[: names.index(job.stage.name)]
    scoring = [item.name for item in earlier if objective(item.objective).scores]
    if scoring:
        return (RewardPart(source="reward_model", value=scoring[-1], name=scoring[-1]),)
    if prompts and all(row.verifiable for row in prompts):
        return (RewardPart(source="verifier", value="exact", name="exact"),)
    return ()


def model_folders(job: Job, prompts: Sequence[Prompt]) -> list[Path]:
    """The folders of the reward models that score the stage's answers.

    Raises InputError if one is not there.
    """
    return [
        reward_folder(job, part.value)
        for part in parts_of(job, prompts)
        if part.source == "reward_model"
    ]


def reward_files(job: Job) -> list[Path]:
    """The files of the stage that its rewards are made of: code of the user, and schemas."""
    found = (file for part in reward_parts(job.options) for file in _files(part).values())
    return [job.folder / Path(file).expanduser() for file in dict.fromkeys(found)]


def _files(part: RewardPart) -> dict[str, str]:
    """Key -> the file that it names."""
    code = {"reward": part.value.rpartition(":")[0]} if part.source == "reward" else {}
    schema = part.options.get("schema")
    return {**code, **({"schema": str(schema)} if schema is not None else {})}


def reward_faults(job: Job) -> list[Fault]:
    """What is wrong with the keys that choose the reward, and with the files that they name."""
    at = f"stage {job.stage.name}"
    faults = []
    for fault in key_faults(job.options, response_tokens=job.options.get("response_tokens")):
        in_list = len(fault.place) > 1 and isinstance(fault.place[1], int)
        where = f"{at}: {fault.place[0]}[{fault.place[1]}]" if in_list else at
        faults.append(Fault(where=where, what=fault.what, allowed=fault.allowed, hint=fault.hint))
    for part in reward_parts(job.options):
        path, _, name = part.value.rpartition(":")
        if part.source == "reward" and not (path and name.isidentifier()):
            what = f"reward is '{part.value}'"
            faults.append(Fault(where=at, what=what, allowed=FILES["reward"]))
            continue
        for key, named in _files(part).items():
            file = job.folder / Path(named).expanduser()
            if not file.is_file():
                allowed = f"{FILES[key]}, relative to the plan"
                faults.append(Fault(where=at, what=f"{key}: no such file: {file}", allowed=allowed))
    return faults


def source_note(job: Job, prompts: Sequence[Prompt]) -> str | None:
    """What the notes of the run say about the reward; None if nothing gives one."""
    parts = parts_of(job, prompts)
    words = [
        f"{IN_WORDS[part.source]}{part.value}"
        + (f" ({part.name})" if part.name not in part.value else "")
        for part in parts
    ]
    if len(parts) > 1:
        pairs = zip(parts, words, strict=True)
        listed = "; ".join(f"{part.weight:g} x {word}" for part, word in pairs)
        return f"the reward is a weighted sum: {listed}"
    if not parts:
        return None
    is_chosen = parts[0].source != "verifier" or reward_parts(job.options)
    why = "" if is_chosen else ", since every row has an answer that can be verified"
    return f"the reward is {words[0]}{why}"


# --------------------------------------------------------------------------- building them


def build_rewards(
    job: Job,
    tokenizer: Tokenizer,
    prompts: Sequence[Prompt],
    device: Device,
    *,
    scored_elsewhere: Path | None = None,
) -> Rewards:
    """The stage's rewards. Raises InputError if nothing says what they are, or one does not fit
    the model or the data.

    Args:
        scored_elsewhere: The folder of the reward model that the caller scores by itself.
    """
    parts = parts_of(job, prompts)
    if not parts:
        raise InputError(
            "nothing says what reward an answer gets, and not every row of"
            " the data has an answer that can be verified",
            where=f"stage {job.stage.name}",
            allowed=NOTHING_SCORES,
            hint="a reward model is trained with objective rm on pairs",
        )
    rewards = []
    for part in parts:
        if part.source == "verifier":
            reward = _verifier(job, part, prompts)
        elif part.source == "reward":
            score = load_user_reward(part.value, job.folder)
            reward = Reward(f"reward {part.value}", score, may_miss=True)
        else:
            folder = reward_folder(job, part.value)
            reward = Reward(f"reward model {folder.name}", None)
            if folder == scored_elsewhere:
                scored_elsewhere = None
            else:
                check_same_tokens(job, tokenizer, folder)
                model = load_reward_model(job, folder, device)
                reward.score = partial(model_scores, model, at_once=job.stage.micro_batch_size)
        reward.key, reward.weight = part.name, part.weight
        rewards.append(reward)
    return Rewards(rewards)


def _verifier(job: Job, part: RewardPart, prompts: Sequence[Prompt]) -> Reward:
    kind, pattern = part.value, str(part.options.get("pattern") or "")
    needs_answer = kind == "exact" or "{answer}" in pattern
    missing = [row.number for row in prompts if row.answer is None]
    if needs_answer and missing:
        listed = ", ".join(map(str, missing[:5]))
        raise InputError(
            f"verifier {kind} needs an answer in every row, and"
            f" {len(missing):,} have none (rows {listed}{', ...' if len(missing) > 5 else ''})",
            where=f"stage {job.stage.name}",
        )
    limit = int(job.options.get("response_tokens") or job.stage.seq_len)
    overlong = overlong_tokens(part.options, limit)
    ngram = int(part.options.get("ngram") or NGRAM)
    if kind == "json_schema":
        valid = schema_validator(job.folder / Path(str(part.options["schema"])).expanduser())
    verifiers: dict[str, Callable[[Answer], float]] = {
        "exact": lambda answer: same_answer(answer.text, answer.expected or ""),
        "regex": lambda answer: matches(answer.text, pattern, answer.expected),
        "format": lambda answer: matches(answer.text, pattern, answer.expected, whole=True),
        "json_schema": lambda answer: valid(answer.text),
        "length": lambda answer: overlong_penalty(
            len(answer.answer_ids), limit=limit, overlong=overlong
        ),
        "repetition": lambda answer: repetition_penalty(answer.text, ngram=ngram),
    }
    verify = verifiers[kind]
    return Reward(
        f"verifier {kind}" if part.name == kind else f"verifier {kind} ({part.name})",
        lambda answers: [float(verify(answer)) for answer in answers],
        is_penalty=kind in PENALTIES,
    )


def load_user_reward(named: str, folder: Path) -> Callable[[Sequence[Answer]], list[Score]]:
    """The function that `reward: file.py:function` names, for all trainers:

        def score(prompts: list[str], completions: list[str], **columns) -> list[float | None]

    with the arguments that TRL's trainers use; the column `answer` is the right answer in the data,
    or None. A score of None says that the function cannot judge the answer.

    Raises InputError if there is none, and TrainingFailed, when called, if it fails.

    Args:
        folder: What a relative path is relative to.
    """
    file, _, name = named.rpartition(":")
    path = folder / Path(file).expanduser()
    try:
        defined = runpy.run_path(str(path), run_name="own_reward")
    except (Exception, SystemExit) as error:
        raise InputError(
            f"{path} cannot be loaded: {type(error).__name__}: {error}", where="reward"
        ) from error
    function = defined.get(name)
    if not callable(function):
        there = [key for key, value in defined.items() if inspect.isfunction(value)]
        raise InputError(
            f"{path} has no function '{name}'",
            where="reward",
            allowed=", ".join(there) or "it defines no function",
        )
    parameters = inspect.signature(function).parameters.values()
    takes_answers = any(one.name == "answer" or one.kind is one.VAR_KEYWORD for one in parameters)

    def score(answers: Sequence[Answer]) -> list[Score]:
        columns = {"answer": [one.expected for one in answers]} if takes_answers else {}
        texts = [one.text for one in answers]
        try:
            found = function(prompts=[one.prompt for one in answers], completions=texts, **columns)
            return [None if value is None else float(value) for value in found]
        except (Exception, SystemExit) as error:
            raise TrainingFailed(
                f"{named} failed: {type(error).__name__}: {error}",
                where="reward",
                hint="it is called as f(prompts=[...], completions=[...], answer=[...])",
            ) from error

    return score


# --------------------------------------------------------------------------- verifiers


def same_answer(answer: str, expected: str) -> bool:
    """Whether the final answer of a text is the expected one.

    The final answer is what follows ####, is in the last \\boxed{}, is the last number if a number
    is expected, or all of the text. Numbers are compared by value; in texts, case, white space and
    a full stop at the end make no difference.
    """
    goal = final_answer(expected)
    goal_number = number(goal)
    if goal_number is not None:
        marked = final_answer(answer)
        own = number(marked)
        if own is None:
            found = NUMBER.findall(marked)
            own = number(found[-1]) if found else None
        return own is not None and own == goal_number
    return plain_text(final_answer(answer)) == plain_text(goal)


def final_answer(text: str) -> str:
    """The part of a text that is marked as its answer; without a mark, all of it."""
    text = text.split("</think>")[-1]
    boxed = BOXED.findall(text)
    if boxed:
        return str(boxed[-1]).strip()
    return text.rsplit("####", 1)[-1].strip()


def plain_text(text: str) -> str:
    """The text without case, extra white space and a full stop at the end."""
    return " ".join(text.split()).casefold().rstrip(".").strip()


def number(text: str) -> float | None:
    """The value of a text that is a number (thousands' commas, currencies and per cent are
    allowed); None for any other text.
    """
    stripped = text.strip().strip("$€£%").rstrip(".").replace(",", "")
    try:
        value = float(stripped)
    except ValueError:
        return None
    return value if math.isfinite(value) else None


def matches(answer: str, pattern: str, expected: str | None, *, whole: bool = False) -> bool:
    """Whether a text contains the pattern, in which {answer} stands for the expected answer.

    Args:
        whole: It has to match all of the text, white space around it aside; a dot matches line
            ends, too.
    """
    written = pattern.replace("{answer}", re.escape(expected or ""))
    found = (
        re.fullmatch(written, answer.strip(), re.DOTALL) if whole else re.search(written, answer)
    )
    return found is not None


def schema_validator(path: Path) -> Callable[[str], bool]:
    """A function that says whether a text is JSON that fits the schema in a file.

    Raises InputError for a file without a schema, and MachineNotReady without jsonschema.
    """
    try:
        from jsonschema.exceptions import SchemaError
        from jsonschema.validators import validator_for
    except ImportError:
        raise MachineNotReady(
            "verifier json_schema needs jsonschema, which is not installed",
            hint="pip install jsonschema",
        ) from None
    try:
        schema = parse_json(text_of(path))
        kind = validator_for(schema)
        kind.check_schema(schema)
    except (OSError, ValueError, SchemaError) as error:
        raise InputError(
            f"not a JSON schema: {str(error).splitlines()[0]}", where=str(path)
        ) from None
    checker = kind(schema)

    def valid(answer: str) -> bool:
        text = answer.split("</think>")[-1].strip()
        fenced = FENCED.match(text)
        try:
            value = parse_json(fenced.group(1) if fenced else text)
        except ValueError:
            return False
        return bool(checker.is_valid(value))

    return valid


def overlong_penalty(tokens: int, *, limit: int, overlong: int) -> float:
    """0 for an answer that leaves `overlong` tokens of the limit unused, falling to -1 at it.

    Args:
        tokens: Of the answer.
        limit: The longest answer, at which it is cut (L_max).
        overlong: The last tokens before it, over which the penalty grows (L_cache).

    Source: soft overlong punishment, DAPO, arXiv:2503.14476, equation 13.
    """
    return -min(1.0, max(0, tokens - (limit - overlong)) / overlong)


def repetition_penalty(text: str, *, ngram: int) -> float:
    """Minus the share of word sequences that occurred before in the text; case does not count.

    A text of fewer words than a sequence has repeats nothing. Without spaces between its words, as
    Chinese is written, a text is one word.

    Args:
        text: The answer.
        ngram: Words in a sequence.

    Source: Demystifying Long Chain-of-Thought Reasoning in LLMs, arXiv:2502.03373, appendix C.2, as
    in open-r1.
    """
    words = text.casefold().split()
    sequences = [tuple(words[start : start + ngram]) for start in range(len(words) - ngram + 1)]
    return len(set(sequences)) / len(sequences) - 1.0 if sequences else 0.0


# --------------------------------------------------------------------------- reward models


def reward_folder(job: Job, named: str) -> Path:
    """The folder of a reward model: the result of a stage of the plan, or a folder.

    Raises InputError if there is none.

    Args:
        named: What the stage says.
    """
    stages = {item.name: item for item in job.plan.stages}
    if named in stages:
        if not objective(stages[named].objective).scores:
            raise InputError(
                f"reward_model names the stage {named}, whose objective is"
                f" {stages[named].objective}",
                where=f"stage {job.stage.name}",
                allowed="a stage with objective rm, or a folder",
            )
        folder = job.run / "stages" / (f"{named}-{job.task}" if job.task else named)
    else:
        folder = job.folder / Path(named).expanduser()
    if not any((folder / file).is_file() for file in ("adapter_config.json", "config.json")):
        hint = "run that stage first" if named in stages else ""
        raise InputError(
            f"{folder} holds no model",
            where=f"stage {job.stage.name}: reward_model",
            allowed="a stage with objective rm, or the folder of a reward model",
            hint=hint,
        )
    return folder


def check_same_tokens(job: Job, tokenizer: Tokenizer, folder: Path) -> None:
    """Raise InputError if the reward model has another tokenizer than the policy."""
    if not (folder / "tokenizer_config.json").is_file():
        raise InputError(
            f"{folder} has no tokenizer",
            where=f"stage {job.stage.name}: reward_model",
            hint="save the tokenizer it was trained with into that folder",
        )
    mine, theirs = tokenizer.get_vocab(), read_tokenizer(job, str(folder)).get_vocab()
    if theirs != mine:
        raise InputError(
            f"the reward model in {folder} has another tokenizer"
            f" ({len(theirs):,} tokens) than the model it would score ({len(mine):,})",
            where=f"stage {job.stage.name}",
            hint="train the reward model on the same base: objective rm in the same plan",
        )


def load_reward_model(job: Job, folder: Path, device: Device) -> Any:
    """The reward model, frozen, in the stage's dtype; a whole one is not quantised.

    Raises InputError if it gives no single score.
    """
    check_files(str(folder), folder_faults)
    if (folder / "adapter_config.json").is_file():
        is_scoring = read_adapter_config(folder).get("task_type") == "SEQ_CLS"
        what, base = "the module in it generates text", job.whole_model(folder)
    else:
        names = json.loads(text_of(folder / "config.json")).get("architectures")
        kind = str(names[0]) if isinstance(names, list) and names else "a model"
        is_scoring = "ForSequenceClassification" in kind
        what, base = f"it holds {kind}", str(folder)
        job = replace(
            job,
            entry=structs.replace(job.entry, stage=structs.replace(job.stage, quantization=None)),
        )
    if not is_scoring:
        raise InputError(
            f"{folder} gives no scores: {what}",
            where=f"stage {job.stage.name}: reward_model",
            allowed="the result of a stage with objective rm, or a model with a head for one score",
        )
    return load_frozen(job, device, str(folder), base=base, head=SCORES, num_labels=1)


def model_scores(model: Model, answers: Sequence[Answer], *, at_once: int) -> list[float]:
    """The reward model's score of each prompt with its answer.

    Args:
        at_once: How many of the longest texts go through the model together.
    """
    if not answers:
        return []
    texts = [[*answer.prompt_ids, *answer.answer_ids] for answer in answers]
    pad_id = model.config.get_text_config().pad_token_id
    with evaluating(model):
        scores: list[float] = head_outputs(model, texts, pad_id, at_once=at_once)[:, 0].tolist()
    return scores
