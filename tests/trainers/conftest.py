"""Small plans and data for the trainers, trained in this process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from advisor.plan.model import Plan, PlanData, Stage
from trainers.frame.job import Job, make_job

QUESTIONS = (
    "Where is my parcel",
    "How can I return a kettle",
    "Do you sell tea",
    "Is the red cup in the shop",
    "Can I pay today",
)


@pytest.fixture(scope="session")
def chats(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty short conversations, all different."""
    path = tmp_path_factory.mktemp("data") / "chats.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"{QUESTIONS[number % 5]}, order {number}?"},
                {"role": "assistant", "content": f"Thank you for writing, order {number}."},
            ]
        }
        for number in range(30)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def make(tiny_model: Path, chats: Path, tmp_path: Path) -> Callable[..., Job]:
    """A job on the tiny model: keys of the stage, and of the job after `job_`."""

    def build(**keys: Any) -> Job:
        job = {
            key.removeprefix("job_"): keys.pop(key) for key in list(keys) if key.startswith("job_")
        }
        common = {key: value for key, value in keys.items() if key in Stage.__dataclass_fields__}
        options = {key: value for key, value in keys.items() if key not in common}
        stage = {
            "name": "sft",
            "objective": "sft",
            "update": "lora",
            "learning_rate": 1e-2,
            "max_steps": 3,
            "micro_batch_size": 4,
            "seq_len": 128,
            **common,
        }
        plan = Plan(
            name="test",
            model=str(tiny_model),
            data=PlanData(path=str(job.pop("data", chats))),
            stages=(Stage(**stage, options=options),),
        )
        return make_job(
            plan, stage="sft", run=job.pop("run", tmp_path / "run"), folder=tmp_path, **job
        )

    return build
