"""Where the reward of an answer comes from: built-in verifiers, reward models, functions of the
user, or several of them with weights.

The notes of the run name them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from advisor.ground.errors import Fault, InputError
from advisor.methods import objective
from advisor.methods.rewards import PENALTIES, RewardPart, overlong_tokens, reward_parts
from advisor.methods.rewards import reward_faults as key_faults
from trainers.job.job import Job
from trainers.job.types import Device, Tokenizer
from trainers.rewards.model import check_same_tokens, load_reward_model, model_scores, reward_folder
from trainers.rewards.penalties import overlong_penalty, repetition_penalty
from trainers.rewards.scoring import Answer, Reward, Rewards, Score
from trainers.rewards.user_function import load_user_reward
from trainers.rewards.verifiers import matches, matches_all, same_answer, schema_validator
from trainers.rows.conversation import Prompt

NGRAM = 3  # words; open-r1's default


# --------------------------------------------------------------------------- which


def earlier_reward_model(job: Job) -> str | None:
    """The name of the latest stage before this one that trains a reward model."""
    before = []
    for item in job.plan.stages:
        if item.name == job.stage.name:
            break
        if objective(item.objective).scores:
            before.append(item.name)
    return before[-1] if before else None


def parts_of(job: Job, prompts: Sequence[Prompt] | None = None) -> tuple[RewardPart, ...]:
    """The rewards of a stage: what it says, else the reward model of an earlier stage, else the
    verifiable answers of the data; empty if there is nothing.
    """
    parts = reward_parts(job.options)
    if parts:
        return parts
    earlier = earlier_reward_model(job)
    if earlier:
        return (RewardPart(source="reward_model", value=earlier, name=earlier),)
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
    found = []
    for part in reward_parts(job.options):
        if part.source == "reward":
            found.append(part.value.rpartition(":")[0])
        if "schema" in part.options:
            found.append(str(part.options["schema"]))
    return [job.folder / Path(file).expanduser() for file in dict.fromkeys(found)]


def reward_faults(job: Job) -> list[Fault]:
    """What is wrong with the keys that choose the reward, and with the files that they name."""
    at = f"stage {job.stage.name}"
    faults = []
    for fault in key_faults(job.options, response_tokens=job.options.get("response_tokens")):
        in_list = len(fault.place) > 1 and isinstance(fault.place[1], int)
        where = f"{at}: {fault.place[0]}[{fault.place[1]}]" if in_list else at
        faults.append(Fault(where=where, what=fault.what, allowed=fault.allowed, hint=fault.hint))
    parts = reward_parts(job.options)
    for part in parts:
        if part.source == "reward":
            faults += _function_faults(job, part.value, at)
    schemas = [part.options["schema"] for part in parts if "schema" in part.options]
    if not parts and job.options.get("schema"):
        schemas.append(job.options["schema"])
    faults += [
        Fault(
            where=at,
            what=f"schema: no such file: {job.folder / schema}",
            allowed="a file with a JSON schema, relative to the plan",
        )
        for schema in schemas
        if not (job.folder / schema).is_file()
    ]
    return faults


def _function_faults(job: Job, reward: str, at: str) -> list[Fault]:
    path, _, name = reward.rpartition(":")
    if not path or not name.isidentifier():
        return [Fault(where=at, what=f"reward is '{reward}'", allowed="file.py:function")]
    file = job.folder / Path(path).expanduser()
    return (
        []
        if file.is_file()
        else [
            Fault(
                where=at,
                what=f"reward: no such file: {file}",
                allowed="file.py:function, relative to the plan",
            )
        ]
    )


NOTHING_SCORES = (
    "verifier: exact, regex, format or json_schema; reward_model: a folder or a stage; reward:"
    " file.py:function; rewards: a list of several"
)


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
            reward = _user_function(job, part)
        else:
            folder = reward_folder(job, part.value)
            if folder == scored_elsewhere:
                reward = Reward(f"reward model {folder.name}", None)
                scored_elsewhere = None
            else:
                reward = _reward_model(job, folder, tokenizer, device)
        reward.key, reward.weight = part.name, part.weight
        reward.is_penalty = part.value in PENALTIES and part.source == "verifier"
        rewards.append(reward)
    return Rewards(rewards)


def source_note(job: Job, prompts: Sequence[Prompt]) -> str | None:
    """What the notes of the run say about the reward; None if nothing gives one."""
    parts = parts_of(job, prompts)
    if len(parts) > 1:
        listed = "; ".join(f"{part.weight:g} x {_in_words(part)}" for part in parts)
        return f"the reward is a weighted sum: {listed}"
    if not parts:
        return None
    (part,) = parts
    if part.source == "verifier" and not reward_parts(job.options):
        return (
            "the reward is the verifier exact, since every row has an answer that can be verified"
        )
    return f"the reward is {_in_words(part)}"


def _in_words(part: RewardPart) -> str:
    words = {
        "reward": "the user's own code: ",
        "reward_model": "the model ",
        "verifier": "the verifier ",
    }
    named = f" ({part.name})" if part.name not in part.value else ""
    return f"{words[part.source]}{part.value}{named}"


# --------------------------------------------------------------------------- each kind


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
    named = f"verifier {kind}" if part.name == kind else f"verifier {kind} ({part.name})"
    if kind == "json_schema":
        valid = schema_validator(job.folder / str(part.options["schema"]))
        return Reward(named, lambda answers: [float(valid(item.text)) for item in answers])
    limit = int(job.options.get("response_tokens") or job.stage.seq_len)
    overlong = overlong_tokens(part.options, limit)
    ngram = int(part.options.get("ngram") or NGRAM)

    def score(answer: Answer) -> Score:
        if kind == "exact":
            return float(same_answer(answer.text, answer.expected or ""))
        if kind == "regex":
            return float(matches(answer.text, pattern, answer.expected))
        if kind == "format":
            return float(matches_all(answer.text, pattern, answer.expected))
        if kind == "length":
            return overlong_penalty(len(answer.answer_ids), limit=limit, overlong=overlong)
        return repetition_penalty(answer.text, ngram=ngram)

    return Reward(named, lambda answers: [score(item) for item in answers])


def _user_function(job: Job, part: RewardPart) -> Reward:
    score = load_user_reward(part.value, job.folder)
    return Reward(
        f"reward {part.value}",
        lambda answers: score(
            [item.prompt for item in answers],
            [item.text for item in answers],
            [item.expected for item in answers],
        ),
        may_miss=True,
    )


def _reward_model(job: Job, folder: Path, tokenizer: Tokenizer, device: Device) -> Reward:
    check_same_tokens(job, tokenizer, folder)
    model = load_reward_model(job, folder, device)
    return Reward(
        f"reward model {folder.name}",
        lambda answers: model_scores(model, answers, at_once=job.stage.micro_batch_size),
    )
