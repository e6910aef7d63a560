"""Free GPUs are named where somebody would train on a processor, and nowhere else."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from advisor.cli import advise
from advisor.ground.types import Answer, Answers
from advisor.situation.build import situation_of

TRAINS = ["--task", "qa", "--data-kind", "paired", "--data-rows", "500"]


def warnings(*more: str) -> str:
    done = CliRunner().invoke(advise, ["--json", *TRAINS, "--model", "Qwen/Qwen3-0.6B", *more])
    assert done.exit_code == 0, done.output
    return " ".join(json.loads(done.stdout)["warnings"])


def test_training_on_a_processor_names_free_gpus() -> None:
    """Without a GPU and with something to train."""
    assert "Kaggle (2 x T4" in warnings("--gpu", "none")


@pytest.mark.parametrize("gpu", ["RTX 4090", "T4", "unknown", "M3 Max"])
def test_a_machine_with_a_gpu_is_told_nothing_of_them(gpu: str) -> None:
    """Whatever GPU is there, or where none is known of."""
    assert "cost nothing" not in warnings("--gpu", gpu)


def test_where_nothing_is_trained_they_are_not_named() -> None:
    """A prompt needs no GPU."""
    assert "cost nothing" not in warnings("--gpu", "none", "--signal", "prompt_meets_quality_bar")


def test_a_machine_nobody_named_is_said_to_be_the_one_meant(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Where no GPU was stated and none is found, the answer is for a processor by a guess."""
    processor = situation_of(Answers(known={"gpu": Answer(value="none", origin="file")})).hardware
    monkeypatch.setattr("advisor.situation.build.probe", lambda: processor)
    guessed = "no GPU was stated, and none was found here"
    assert guessed in warnings()
    assert guessed not in warnings("--gpu", "none")
