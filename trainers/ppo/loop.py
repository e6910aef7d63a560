"""A PPO stage: prompts, roles, updates with checkpoints and guards, the comparison on held-out prompts, result.json.

A step of the plan (max_steps, save_steps, warmup) is an update: micro_batch_size x grad_accum prompts are answered once and
learned from ppo_epochs times.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from advisor.errors import Fault, InputError, TrainingFailed
from advisor.plan.entries import entries
from advisor.units import format_duration, format_gib
from trainers import checkpoints, settings
from trainers.checks import Check, Probe
from trainers.files import plain, write_json
from trainers.job import Job
from trainers.machine import MemoryMeter, check_versions, is_main_process, quiet_libraries, torch_device, use_cores
from trainers.prepare import Prepared
from trainers.prepare.prompts import PROMPTS
from trainers.rows import read_prepared
from trainers.updates import update_named

EVALUATIONS = 4  # times in a run that held-out prompts are answered on the way
DRY_STEPS = 2


@dataclass
class NoConfig:
    """PPO has no config class of a library: `trl:` has nothing to set."""


# --------------------------------------------------------------------------- what the plan says


def faults(job: Job) -> list[Fault]:
    """What in the stage cannot be done, or would be read by nobody."""
    stage, options, at = job.stage, job.options, f"stage {job.stage.name}:"
    found = []

    def dead(key: str, why: str, hint: str) -> None:
        found.append(Fault(what=f"{at} nothing would read '{key}': {why}", hint=hint))

    if stage.options.get("dropout"):
        dead("dropout", "PPO compares probabilities before and after a step, which dropout would change by chance", "remove it")
    if stage.options.get("kl_horizon") is not None and options["kl_target"] is None:
        dead("kl_horizon", "the price of KL is fixed without kl_target", "set kl_target, or remove it")
    if options["reward"] is not None and options["reward_model"] is not None:
        dead("reward_model", "`reward` names a function that scores", "remove one of them")
    if options["minibatches"] > stage.grad_accum:
        found.append(
            Fault(what=f"{at} minibatches {options['minibatches']} are more than the {stage.grad_accum} batches of an update (grad_accum)", allowed=f"1 to {stage.grad_accum}")
        )
    if options["response_tokens"] + 8 > stage.seq_len:
        found.append(
            Fault(
                what=f"{at} response_tokens {options['response_tokens']} leave {stage.seq_len - options['response_tokens']} of seq_len {stage.seq_len} for the prompt",
                allowed=f"response_tokens up to {stage.seq_len - 8}",
            )
        )
    if job.plan.launch.processes > 1 and job.plan.launch.strategy not in (None, "ddp"):
        found.append(Fault(what=f"{at} PPO in several processes needs the whole model in each", allowed="launch.strategy: ddp"))
    return found


def reward_folder(job: Job) -> Path | None:
    """The reward model's folder; None where a function of the user scores. Raises InputError where there is neither."""
    if job.options["reward"] is not None:
        return None
    chain = [entry for entry in entries(job.plan) if entry.task == job.entry.task]
    earlier = chain[: [entry.name for entry in chain].index(job.entry.name)]
    named = job.options["reward_model"]
    stages = [entry for entry in earlier if entry.stage.objective == "rm" and named in (None, entry.stage.name)]
    if stages:
        path, hint = job.run / "stages" / stages[-1].name, f"advise run --only {stages[-1].name} first"
    elif named is not None:
        path, hint = job.folder / Path(named).expanduser(), "reward_model names an earlier stage with objective rm, or a folder in Hugging Face or PEFT layout"
    else:
        raise InputError(
            f"stage {job.stage.name}: nothing scores the answers", allowed="a stage with objective rm before it, `reward_model: FOLDER`, or `reward: file.py:function`"
        )
    if not any((path / file).is_file() for file in ("adapter_config.json", "config.json")):
        raise InputError(f"stage {job.stage.name}: the reward model {path} is not there", hint=hint)
    return path


# --------------------------------------------------------------------------- the stage


def train(job: Job) -> None:
    """Train the stage, or measure two updates of it, and write what came of it into its folder."""
    began_s = time.monotonic()
    versions = check_versions(quantized=job.stage.quantization is not None or "8bit" in job.stage.optimizer or "paged" in job.stage.optimizer)
    device = torch_device(job.plan.launch.device)
    threads = use_cores()
    quiet_libraries()
    from trainers.loading import dtype_faults, load_tokenizer
    from trainers.progress import cut_metrics, say
    from trainers.stage import describe, label

    shown = is_main_process()
    update = update_named(job.stage.update)
    settings.check_passed_through(job, NoConfig, update)
    bad = [*dtype_faults(job, device), *faults(job)]
    if bad:
        raise InputError(faults=bad)
    reward = reward_folder(job)
    tokenizer = load_tokenizer(job)
    data = read_prepared(job, tokenizer, PROMPTS, seq_len=job.stage.seq_len - job.options["response_tokens"])
    if shown:
        for line in describe(data):
            say(f"{label(job)}: {line}")
    memory = MemoryMeter(device)
    ppo, notes, added = build(job, device, update, tokenizer, data, reward)
    if shown:
        for note in notes:
            say(f"{label(job)}: {note}")
    run = Run(job, ppo, data, memory, shown=shown)
    if job.dry_run:
        run.measure(versions)
        return

    depends_on = [asdict(job.stage), job.base_model, job.plan.revision, str(job.start), run.steps, settings.world_size(), versions["torch"], data.digest]
    mark = checkpoints.fingerprint([*depends_on, identity_of(reward, job)])
    run.mark = mark
    if shown and checkpoints.others_there(job.checkpoints, mark=mark):
        say(f"{label(job)}: the checkpoints there belong to other settings or data: starting from the beginning")
    resume = checkpoints.last_complete(job.checkpoints, mark=mark, remove=shown)
    probe = Probe(row=probe_row(data.train, tokenizer), pad_id=tokenizer.pad_token_id)
    with ppo.roles.use("policy") as policy:
        before = probe.answer(policy)
    held = held_out(job, ppo, data, mark) if job.judge and shown else None
    if held is not None:
        held.ask_before()
    run.held = held
    first = 0
    if resume is not None:
        from trainers.ppo.saving import load_checkpoint

        load_checkpoint(resume[0], ppo)
        first = resume[1]["step"]
    if shown:
        cut_metrics(run.metrics, stage=job.stage.name, task=job.task, after=first)
        run.lines = run.written_lines()
        if resume is not None:
            say(f"{label(job)}: going on after update {first} of {run.steps}, learning rate {resume[1]['learning_rate']:.3g}, {resume[1]['epoch']:.2f} times through the prompts")
    memory.reset()
    run.go(first)
    if not shown:
        return
    measured = run.measured()
    finish(
        job, run, ppo, tokenizer, probe, before, data, versions, measured, {"threads": threads, "stop_tokens_added": added, "reward": str(reward or job.options["reward"])}, began_s
    )


def build(job: Job, device: Any, update: Any, tokenizer: Any, data: Prepared[Any], reward: Path | None) -> tuple[Any, list[str], list[str]]:
    """(everything that updates need, notes for the person, stop tokens that had to be added)."""
    import torch

    from trainers.loading import check_vocabulary, enable_stop_tokens
    from trainers.ppo import math as formulas
    from trainers.ppo.reward import own_reward
    from trainers.ppo.roles import POLICY, build_roles
    from trainers.ppo.rollout import stop_ids
    from trainers.ppo.steps import optimizer_of
    from trainers.ppo.update import Ppo, Settings
    from trainers.progress import say

    options = job.options
    torch.manual_seed(job.stage.seed)
    score = own_reward(options["reward"], job.folder) if reward is None else None
    notes = [f"answers are scored by your own function {options['reward']}, which runs here"] if score is not None else []
    roles, about = build_roles(job, device, update, tokenizer, reward, [SimpleNamespace(input_ids=row.prompt_ids) for row in data.train])
    policy = roles.parts[POLICY].model
    check_vocabulary(policy, tokenizer)
    added = enable_stop_tokens(policy, tokenizer, set(data.turn_ends))
    without_dropout(roles)
    if job.stage.gradient_checkpointing:
        roles.recompute()
    for model in roles.models():
        model.train(job.stage.gradient_checkpointing)  # which libraries do in training mode only; nothing else differs without dropout
    dtype = settings.mixed_dtype(job, device)
    world = settings.world_size()
    torch.manual_seed(job.stage.seed + process_rank())
    ppo = Ppo(
        roles=roles,
        settings=Settings.of(options, job.stage.micro_batch_size),
        price=formulas.KlPrice(options["kl_coef"], options["kl_target"], options["kl_horizon"] or formulas.KlPrice.horizon),
        optimizer=optimizer_of(job.stage, options, roles),
        tokenizer=tokenizer,
        stops=stop_ids(policy),
        device=device,
        autocast=(lambda: torch.autocast(device.type, getattr(torch, dtype))) if dtype else nullcontext,
        score=score,
        scaler=torch.amp.GradScaler(device.type) if dtype == "float16" else None,
        say=say,
        reduce=summed_over_processes(device) if world > 1 else None,
    )
    return ppo, [*notes, *about], added


def process_rank() -> int:
    """Of all processes, which this is."""
    return int(os.environ.get("RANK", "0"))


def without_dropout(roles: Any) -> None:
    """Switch every dropout off: the ratio of a token's probabilities must come from the step alone."""
    import torch

    for model in roles.models():
        for module in model.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            if isinstance(getattr(module, "attention_dropout", None), float):
                module.attention_dropout = 0.0


def summed_over_processes(device: Any) -> Any:
    """A function that sums a tensor over all processes of the run."""
    import torch.distributed as dist

    if not dist.is_initialized():
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def reduce(tensor: Any) -> Any:
        dist.all_reduce(tensor)
        return tensor

    return reduce


def held_out(job: Job, ppo: Any, data: Prepared[Any], mark: str) -> Any:
    from trainers.ppo.heldout import HeldOut

    return HeldOut(job, ppo, data.holdout, mark)


def identity_of(reward: Path | None, job: Job) -> str:
    """What scores, as far as checkpoints depend on it."""
    if reward is None:
        file = job.folder / Path(job.options["reward"].rpartition(":")[0]).expanduser()
        return checkpoints.fingerprint(file.read_text("utf-8"))
    from trainers.ppo.roles import identity

    return identity(reward)


def probe_row(prompts: Sequence[Any], tokenizer: Any) -> Any:
    """What the checks put to a model: a prompt of middle length, ended."""
    chosen = sorted(prompts, key=lambda row: row.tokens)[len(prompts) // 2]
    ids = [*chosen.prompt_ids, tokenizer.eos_token_id]
    return SimpleNamespace(input_ids=ids, labels=ids, tokens=len(ids), learned=1)


# --------------------------------------------------------------------------- the updates


@dataclass
class Run:
    """The updates of a stage and what is recorded of them."""

    job: Job
    ppo: Any
    data: Prepared[Any]
    memory: MemoryMeter
    shown: bool
    mark: str = ""
    held: Any = None
    lines: list[dict[str, Any]] = field(default_factory=list)
    told: dict[str, str] = field(default_factory=dict)  # finding -> what was told
    step_times_s: list[float] = field(default_factory=list)
    tokens: int = 0
    train_s: float = 0.0

    @property
    def metrics(self) -> Path:
        return self.job.run / "metrics.jsonl"

    @property
    def size(self) -> int:
        """Prompts an update and process."""
        return self.job.stage.effective_batch_size

    @property
    def steps(self) -> int:
        return settings.total_steps(self.job, len(self.data.train), processes=settings.world_size())

    def go(self, first: int) -> None:
        """Every update from `first` on. Raises TrainingFailed where a number is none, or a guard says stop and this is no trial."""
        from trainers.ppo.saving import save_checkpoint
        from trainers.ppo.steps import prompts_of, rate_share, set_rates
        from trainers.progress import Display
        from trainers.stage import label

        job, steps, world = self.job, self.steps, settings.world_size()
        every, look_every = settings.save_every(job, steps), max(1, math.ceil(steps / (EVALUATIONS + 1)))
        display = Display(label(job), steps, shown=self.shown)
        began = time.monotonic()
        try:
            for step in range(first, steps):
                started = time.monotonic()
                share = rate_share(step, steps, warmup=job.stage.warmup, scheduler=job.stage.scheduler)
                set_rates(self.ppo.optimizer, share)
                prompts = prompts_of(step, self.data.train, size=self.size, seed=job.stage.seed, rank=process_rank(), world=world)
                found = self.ppo.update(prompts)
                seconds = time.monotonic() - started
                line = self.line(step + 1, found, job.stage.learning_rate * share, seconds, time.monotonic() - began)
                if self.held is not None and (step + 1) % look_every == 0 and step + 1 < steps:
                    line["holdout_wins"], line["holdout_losses"] = self.held.on_the_way()
                self.record(line)
                left_s = (steps - step - 1) * (time.monotonic() - began) / (step + 1 - first)
                display.show(step + 1, shown_line(line, left_s))
                self.guard(line)
                if self.shown and ((step + 1) % every == 0 or step + 1 == steps):
                    epoch = (step + 1) * self.size * world / len(self.data.train)
                    save_checkpoint(job.checkpoints, self.ppo, step=step + 1, steps=steps, mark=self.mark, epoch=epoch)
        finally:
            self.train_s = time.monotonic() - began
            display.close()

    def line(self, step: int, found: Mapping[str, float], rate: float, seconds: float, elapsed_s: float) -> dict[str, Any]:
        """A line of metrics.jsonl."""
        tokens = int(found["tokens"]) * settings.world_size()
        self.tokens += tokens
        self.step_times_s.append(seconds)
        about = {"stage": self.job.stage.name, "task": self.job.task, "step": step, "steps": self.steps, "learning_rate": rate}
        rest = {key: value for key, value in found.items() if key not in ("tokens", "loss")}
        costs = {"tokens_per_s": round(tokens / max(seconds, 1e-9), 1), "elapsed_s": round(elapsed_s, 3), "memory_bytes": self.memory.peak_bytes()}
        return {**about, "loss": found["loss"], **rest, **costs}

    def record(self, line: Mapping[str, Any]) -> None:
        self.lines.append(dict(line))
        if self.shown:
            with self.metrics.open("a", encoding="utf-8") as file:
                file.write(json.dumps(plain(line)) + "\n")

    def written_lines(self) -> list[dict[str, Any]]:
        """The lines of this stage that an earlier process wrote."""
        if not self.metrics.is_file():
            return []
        found = [json.loads(line) for line in self.metrics.read_text("utf-8").splitlines()]
        return [line for line in found if line.get("stage") == self.job.stage.name and line.get("task") == self.job.task]

    def guard(self, line: Mapping[str, Any]) -> None:
        """Tell what is wrong, once; raise TrainingFailed where it stops the run."""
        from trainers.ppo.guards import findings, gamed, not_finite
        from trainers.progress import say
        from trainers.stage import label

        job = self.job
        bad = not_finite(line, scaled=self.ppo.scaler is not None)
        if bad is not None:
            raise TrainingFailed(f"{bad} at update {line['step']}; nothing was saved from it", hint="lower the learning_rate (a third of it), or use weights_dtype: float32")
        found = findings(self.lines, kl_limit=job.options["kl_limit"], response_tokens=job.options["response_tokens"])
        if "holdout_wins" in line:
            start = [old["reward"] for old in self.lines[:3]]
            found += [finding for finding in [gamed(sum(start) / len(start), line["reward"], line["holdout_wins"], line["holdout_losses"])] if finding]
        for finding in found:
            if finding.stops and job.max_steps is None:
                raise TrainingFailed(f"{finding.what} (update {line['step']})", hint=finding.hint)
            if finding.name not in self.told and self.shown:
                say(f"{label(job)}: WARNING: {finding.what}: {finding.hint}")
            self.told.setdefault(finding.name, f"update {line['step']}: {finding.what}: {finding.hint}")

    def measured(self) -> dict[str, Any]:
        """What the run cost, for result.json."""
        times = sorted(self.step_times_s[1:] or self.step_times_s)
        return {
            "peak_bytes": self.memory.peak_bytes(),
            "counter": self.memory.counter,
            "reserved_bytes": self.memory.reserved_bytes(),
            "step_s": times[len(times) // 2] if times else 0.0,
            "tokens_per_s": self.tokens / self.train_s if self.train_s else None,
            "train_s": self.train_s,
        }

    def measure(self, versions: Mapping[str, str]) -> None:
        """Two updates on the longest prompts with answers of full length; writes dry_run.json, keeps nothing."""
        from trainers.ppo.rollout import AT_ONCE
        from trainers.ppo.steps import set_rates
        from trainers.progress import say

        job, limit = self.job, self.job.options["response_tokens"]
        rows = min(self.size, max(AT_ONCE, job.stage.micro_batch_size))  # as many as are ever written at once
        longest = sorted(self.data.train, key=lambda row: -row.tokens)[:rows]
        longest = [longest[place % len(longest)] for place in range(rows)]
        set_rates(self.ppo.optimizer, 1.0)
        times, losses = [], []
        for _ in range(DRY_STEPS):
            began = time.monotonic()
            found = self.ppo.update(longest, shortest=limit)
            times.append((time.monotonic() - began) * self.size / rows)
            losses.append(found["loss"])
            self.tokens += int(found["tokens"])
        self.train_s = sum(times) * rows / self.size
        if not self.shown:
            return
        step_s = times[-1]
        record = {
            "measured": {
                "peak_bytes": self.memory.peak_bytes(),
                "training_peak_bytes": self.memory.peak_bytes(),
                "counter": self.memory.counter,
                "reserved_bytes": self.memory.reserved_bytes(),
                "baseline_bytes": self.memory.baseline_bytes,
                "step_s": step_s,
                "step_times_s": times,
                "micro_batches": -(-rows // job.stage.micro_batch_size),
                "tokens_per_s": self.tokens / self.train_s,
            },
            "steps": self.steps,
            "longest_batch_duration_s": step_s * self.steps,
            "batch_tokens": sum(row.tokens + limit for row in longest[: job.stage.micro_batch_size]),
            "losses": losses,
            "evaluation_loss": None,
            "data": self.data.counts(),
            "versions": dict(versions),
        }
        write_json(job.output / "dry_run.json", record)
        kind = "allocated on the GPU" if self.memory.on_gpu else "growth of resident memory from before the model was loaded"
        peak = f"peak {format_gib(record['measured']['peak_bytes'])} ({kind})"  # type: ignore[index]
        say(f"{job.stage.name}: {peak}, {step_s:.2f} s an update with the longest answers, {self.steps:,} updates: at most {format_duration(step_s * self.steps)}")


def shown_line(line: Mapping[str, Any], left_s: float) -> str:
    """What an update was like, in one line."""
    parts = [
        f"reward {line['reward']:.3f}",
        f"KL {line['kl']:.3f}",
        f"entropy {line['entropy']:.2f}",
        f"clipped {line['clip_fraction']:.0%}",
        f"explained {line['explained_variance']:.2f}",
        f"{line['response_tokens']:.0f} tokens, {line['ended']:.0%} end",
        f"{line['tokens_per_s']:,.0f} tokens/s",
        f"{format_duration(left_s)} left",
        format_gib(line["memory_bytes"]),
    ]
    return "  ".join(parts)


# --------------------------------------------------------------------------- afterwards


def finish(
    job: Job,
    run: Run,
    ppo: Any,
    tokenizer: Any,
    probe: Probe,
    before: Any,
    data: Prepared[Any],
    versions: Mapping[str, str],
    measured: Mapping[str, Any],
    about: Mapping[str, Any],
    began_s: float,
) -> None:
    """Save the policy, check what was saved, compare, and write result.json."""
    from trainers.checks import check_saved, check_stops
    from trainers.progress import say
    from trainers.stage import label

    held = run.held
    if held is not None:
        held.ask_after()
    used = resolved(job, ppo, about)
    policy = ppo.roles.only_policy()
    policy.eval()
    checkpoints.save_result(policy, tokenizer, job.output)
    checks: list[Check] = check_saved(job, policy, job.output, probe, before)
    evaluation, verdict = None, None
    if held is not None:
        evaluation, verdict = held.record(), held.verdict()
        checks += check_stops(job, held.samples(), held.samples_before(), job.options["response_tokens"])
        say(f"{label(job)}: {verdict[1]}")
    checks += [Check(name, False, text) for name, text in run.told.items()]
    for check in checks:
        say(f"{label(job)}: {'ok' if check.ok else 'WARNING'}: {check.text}")
    write_json(
        job.output / "result.json",
        {
            "status": "done",
            "steps": run.steps,
            "loss_first": run.lines[0]["loss"] if run.lines else None,
            "loss_last": run.lines[-1]["loss"] if run.lines else None,
            "reward_first": run.lines[0]["reward"] if run.lines else None,
            "reward_last": run.lines[-1]["reward"] if run.lines else None,
            "duration_s": time.monotonic() - began_s,
            "measured": measured,
            "data": data.counts(),
            "evaluation": evaluation,
            "checks": [check.record() for check in checks],
            "verdict": {"ok": all(check.ok for check in checks), "word": verdict[0] if verdict else None, "text": verdict[1] if verdict else None},
            "versions": versions,
            "resolved": used,
        },
    )


def resolved(job: Job, ppo: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """Every value that was really used, defaults included."""
    stage, roles = job.stage, ppo.roles
    trained = {role: sum(parameter.numel() for parameter in roles.trained(role).values()) for role in ("policy", "value")}
    model = roles.parts["policy"].model
    adapter = model.peft_config["default"].to_dict() if roles.shared else None
    keys = (
        "weights_dtype",
        "quantization",
        "attention",
        "seq_len",
        "truncation",
        "holdout",
        "optimizer",
        "learning_rate",
        "scheduler",
        "warmup",
        "micro_batch_size",
        "grad_accum",
        "seed",
    )
    return {
        "model": job.base_model,
        "start_from": job.start,
        "device": str(ppo.device),
        **about,
        **{key: getattr(stage, key) for key in keys},
        "autocast": settings.mixed_dtype(job, ppo.device),
        "double_quantization": stage.double_quantization is not False if stage.quantization == "nf4" else None,
        "options": job.options,
        "prompts_an_update": stage.effective_batch_size * settings.world_size(),
        "trainable_parameters": trained["policy"],
        "value_parameters": trained["value"],
        "one_base": roles.shared,
        "peft": adapter,
    }
