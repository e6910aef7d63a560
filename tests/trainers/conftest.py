"""Small plans and data for the trainers, trained in this process."""

import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from advisor.ground.errors import InputError
from advisor.ground.progress import BYTES, Wait, board
from advisor.plan.model import Plan, PlanData, Stage
from advisor.plan.write import plan_text
from tests.trainers.alignment import BETTER, QUESTIONS, REWARD, WORSE, keys_of, stage_of, stage_with
from tests.trainers.runs import chat, trained, write_rows
from trainers.job.job import Job, make_job


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty short conversations, all different."""
    rows = (
        chat(f"{QUESTIONS[number % 5]}, order {number}?", f"Thank you for writing, order {number}.")
        for number in range(30)
    )
    return write_rows(tmp_path_factory.mktemp("data") / "chats.jsonl", rows)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model: Path) -> Any:
    """The tiny model's; shared, so not to be changed."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


@pytest.fixture(scope="session")
def tiny_moe(once: Callable[[str, Callable[[Path], object]], Path], tiny_model: Path) -> Path:
    """The folder of a random two-layer Qwen3-MoE: four experts, two for each token."""

    def save(folder: Path) -> None:
        from transformers import AutoTokenizer

        from tests.trainers.moe import tiny_mixture

        tokenizer = AutoTokenizer.from_pretrained(tiny_model)
        tokenizer.save_pretrained(folder)
        ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
        tiny_mixture(
            "qwen3_moe", vocab_size=len(tokenizer), max_position_embeddings=512, **ends
        ).save_pretrained(folder)

    return once("tiny-moe", save)


def apart(keys: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Keys of a stage, and those of its job, which begin with job_."""
    job = {key.removeprefix("job_"): keys[key] for key in keys if key.startswith("job_")}
    return {key: keys[key] for key in keys if not key.startswith("job_")}, job


def job_in(folder: Path, stages: tuple[Stage, ...], *, model: Path, data: Path, **job: Any) -> Job:
    """The job of the last stage, in `run` below the given folder unless the job says otherwise."""
    plan = Plan(name="test", model=str(model), data=PlanData(path=str(data)), stages=stages)
    return make_job(plan, stage=stages[-1].name, folder=folder, **{"run": folder / "run", **job})


SMALL = {
    "name": "sft", "objective": "sft", "update": "lora", "learning_rate": 1e-2, "max_steps": 3,
    "micro_batch_size": 4, "seq_len": 128,
}  # fmt: skip


def plan_file(folder: Path, model: Path, data: Path, **stage: Any) -> Path:
    """The file of a plan of one small stage with these keys."""
    stages = (stage_with({**SMALL, "max_steps": 12, **stage}),)
    path = folder / "plan.yaml"
    path.write_text(plan_text(job_in(folder, stages, model=model, data=data).plan))
    return path


@pytest.fixture
def make(tiny_model: Path, chats: Path, tmp_path: Path) -> Callable[..., Job]:
    """A job on the tiny model: keys of the stage, and of the job after `job_`."""

    def build(**keys: Any) -> Job:
        stage, job = apart(keys)
        stages = (stage_with({**SMALL, **stage}),)
        return job_in(tmp_path, stages, **{"model": tiny_model, "data": chats, **job})

    return build


@pytest.fixture(scope="session")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Forty pairs; the better answer is friendly, and the shorter one in half of them."""
    extra = " We will look at the cups and kettles in blue and green."
    rows = [
        {
            "prompt": f"{QUESTIONS[number % 5]}, order {number}?",
            "chosen": BETTER.format(number) + extra * (number % 2),
            "rejected": WORSE.format(number),
        }
        for number in range(40)
    ]
    return write_rows(tmp_path_factory.mktemp("pairs") / "pairs.jsonl", rows)


@pytest.fixture
def align(tiny_model: Path, pairs: Path, tmp_path: Path) -> Callable[..., Job]:
    """A job of a stage with own.py:score; job_ keys are the job's, `earlier` the stages before."""
    (tmp_path / "own.py").write_text(REWARD)

    def build(objective: str, *, earlier: tuple[Stage, ...] = (), **keys: Any) -> Job:
        stage, job = apart(keys)
        stages = (*earlier, stage_of(objective, **stage))
        return job_in(tmp_path, stages, **{"model": tiny_model, "data": pairs, **job})

    return build


@contextmanager
def waits_heard() -> Iterator[list[tuple[str, int, int | None]]]:
    """(What, done, total) of each wait for anything but bytes, each time that it is heard."""
    found: list[tuple[str, int, int | None]] = []

    def hear(wait: Wait) -> None:
        if wait.unit != BYTES:
            found.append((wait.what, wait.done, wait.total))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(board, "heard", hear)
        yield found


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """The test fails if a stage loads a model."""
    monkeypatch.setattr(
        "trainers.start.loading.load_base", lambda *_, **__: pytest.fail("a model was loaded")
    )


@pytest.fixture
def fault(
    make: Callable[..., Job], align: Callable[..., Job], unloaded: None
) -> Callable[..., str]:
    """What is said against the keys of a stage, and that no model was loaded for it."""

    def text(objective: str = "sft", **keys: Any) -> str:
        with pytest.raises(InputError) as caught:
            trained(make(**keys) if objective == "sft" else align(objective, **keys))
        return caught.value.text()

    return text


@pytest.fixture(scope="session")
def trained_once(
    once: Callable[[str, Callable[[Path], object]], Path], tiny_model: Path, pairs: Path
) -> Callable[..., Job]:
    """`trained_once(objective, update)`: a stage trained once for tests that leave it alone."""

    def job_of(objective: str, update: str = "lora") -> Job:
        stage = stage_of(objective, **keys_of(objective, update))

        def job_below(folder: Path) -> Job:
            return job_in(folder, (stage,), model=tiny_model, data=pairs)

        def train(folder: Path) -> None:
            (folder / "own.py").write_text(REWARD)
            with redirect_stderr(io.StringIO()) as said, waits_heard() as heard:
                trained(job_below(folder))
            (folder / "said.txt").write_text(said.getvalue())
            (folder / "heard.json").write_text(json.dumps(heard))

        return job_below(once(f"{objective}-{update}", train))

    return job_of
