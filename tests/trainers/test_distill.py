"""Distillation: what it learns, how it resumes, what it refuses; and general rows against forgetting."""

import json
import shutil
import threading
from dataclasses import replace
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from trainers.teachers import replay
from trainers.teachers import teacher as module
from trainers.teachers.teacher import BLOCK, Answering, Written, written_answers

torch = pytest.importorskip("torch")

from msgspec import structs
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from advisor.estimate import whole_time
from advisor.ground.errors import InputError
from advisor.plan.model import Launch, VLLMServer
from tests.trainers.rollouts.vllm_stand_in import StandIn
from tests.trainers.runs import (
    break_at,
    losses,
    metrics,
    same,
    trained,
    weights,
    whole_and_broken,
    write_rows,
)
from trainers import distill, sft
from trainers.evaluation.generation import GENERAL
from trainers.stage.load import check_rows
from trainers.start.loading import load_tokenizer
from trainers.step.answer_loss import Head
from trainers.teachers.trainer import (
    Distance,
    Distilling,
    is_on_policy,
    logit_divergences,
    prompt_length,
)


@pytest.fixture(scope="session")
def teacher(once, trained_once):
    """The folder of a model that learned to answer, with a vocabulary padded to another size."""

    def save(folder):
        source = trained_once("sft", "full").output
        AutoTokenizer.from_pretrained(source).save_pretrained(folder)
        model = AutoModelForCausalLM.from_pretrained(source)
        model.resize_token_embeddings(model.config.vocab_size + 8)
        model.save_pretrained(folder)

    return once("tiny-teacher", save)


@pytest.fixture
def lesson(make, teacher):
    """A distillation of that teacher: keys of the stage, and of the job after `job_`."""
    small = {
        "name": "sft", "objective": "distill", "teacher": str(teacher), "holdout": 0.2,
        "response_tokens": 6, "max_steps": 6, "micro_batch_size": 4, "save_steps": 2,
    }  # fmt: skip
    return lambda **keys: make(**{**small, **keys})


@pytest.mark.parametrize("temperature", [1.0, 2.0])
@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("by", [Distance.in_tiles, Distance.in_slices, Distance.__call__])
def test_the_divergence_is_trls(beta, temperature, by, monkeypatch):
    """In tiles or in slices, value and gradient are those of GKD's loss on whole logits."""
    from trl.experimental.gkd import GKDTrainer

    monkeypatch.setattr("trainers.teachers.trainer.SLICE_LOGITS", 64)  # two tokens each
    torch.manual_seed(0)
    mine, theirs = torch.nn.Linear(8, 32), torch.nn.Linear(12, 40)
    own_NH = torch.randn(5, 8, requires_grad=True)
    other_NH = torch.randn(5, 12)
    heads = {"student": Head(mine), "teacher": Head(theirs)}
    found_N = by(Distance(**heads, beta=beta, temperature=temperature), own_NH, other_NH)
    found = torch.autograd.grad(found_N.mean(), [own_NH, mine.weight])
    expected = GKDTrainer.generalized_jsd_loss(
        mine(own_NH)[None], theirs(other_NH)[None, :, :32].detach(),
        labels=torch.zeros(1, 5), beta=beta, temperature=temperature,
    )  # fmt: skip
    wanted = torch.autograd.grad(expected, [own_NH, mine.weight])
    assert float(found_N.detach().mean()) == pytest.approx(float(expected.detach()), rel=1e-5)
    for one, other in zip(found, wanted, strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("by", [Distance.in_tiles, Distance.in_slices])
def test_a_capped_and_scaled_head_is_scored_as_the_model_scores(by):
    """A soft cap and a scale of the logits count in tiles as in slices."""
    torch.manual_seed(0)
    module = torch.nn.Linear(8, 32, bias=False)
    other = torch.nn.Linear(8, 32, bias=False)
    own_NH, other_NH = torch.randn(4, 8) * 9, torch.randn(4, 8) * 9
    heads = {"student": Head(module, scale=0.5, cap=3.0), "teacher": Head(other)}
    found_N = by(Distance(**heads, beta=1.0), own_NH, other_NH)
    capped_NV = 3 * torch.tanh(module(own_NH) * 0.5 / 3)
    expected_N = logit_divergences(capped_NV, other(other_NH), beta=1.0)
    assert torch.allclose(found_N, expected_N, rtol=1e-4, atol=1e-6)


def test_the_student_answers_its_share_evenly():
    """Of any hundred micro-batches in a row the plan's share is answered by the student."""
    for share in (0.0, 0.25, 0.5, 0.9, 1.0):
        turns = [is_on_policy(number, share) for number in range(400)]
        counts = [sum(turns[start : start + 100]) for start in (0, 37, 290)]
        assert counts == pytest.approx([100 * share] * 3, abs=1)


def test_a_question_ends_where_the_last_answer_begins():
    """Of several answers in a row only the last is written anew; a text has no question."""
    assert prompt_length([-100, -100, 5, 6, -100, -100, 7, 8, -100]) == 6
    assert prompt_length([1, 2, 3]) == 0


@pytest.mark.parametrize(
    "keys",
    [
        {"on_policy": 0.0, "beta": 0.0},
        {"on_policy": 0.5, "beta": 0.5},
        {"on_policy": 1.0, "beta": 1.0, "update": "full", "learning_rate": 1e-3},
    ],
    ids=["given-answers", "mixed", "own-answers"],
)
def test_the_student_comes_closer_to_its_teacher(keys, lesson):
    """The divergence on held-out rows falls, and is what the verdict is about."""
    job = lesson(**{**keys, "max_steps": 12, "micro_batch_size": 8, "keep": "best"})
    result = trained(job)
    found = result["evaluation"]["metrics"]["divergence from the teacher"]
    assert found["after"] < 0.8 * found["before"]
    assert result["verdict"]["word"] == "better"
    assert "divergence from the teacher" in result["verdict"]["text"]
    assert result["evaluation"]["holdout_loss_before"] is not None
    measured = [line["holdout_loss"] for line in metrics(job) if "holdout_loss" in line]
    assert measured[0] > measured[-1]
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]


@pytest.mark.parametrize(
    "keys",
    [
        {"update": "prefix", "prefix_tokens": 4},
        {"quantization": "nf4"},
        {"gradient_checkpointing": True, "precision": "mixed", "weights_dtype": "float32"},
    ],
    ids=lambda keys: next(iter(keys.values())),
)
def test_every_update_distils(keys, lesson):
    """Modules, a quantised base and mixed precision learn on given and on their own answers."""
    result = trained(lesson(**{**keys, "on_policy": 0.5, "max_steps": 3}, job_judge=False))
    assert [check["ok"] for check in result["checks"][:2]] == [True, True]


def test_a_broken_run_resumes_with_the_same_weights(lesson, monkeypatch):
    """What the student writes depends on seed and step alone, so a result is equal to the bit."""
    keys = {"on_policy": 0.5, "grad_accum": 2, "micro_batch_size": 2, "dropout": 0.1}
    whole, broken = whole_and_broken(lesson, 5, monkeypatch, **keys)
    assert losses(broken) == losses(whole)
    assert same(weights(broken), weights(whole))


def test_another_teacher_starts_anew(lesson, teacher, tmp_path, capsys, monkeypatch):
    """Checkpoints belong to the teacher's weights: another one is no reason to go on."""
    own = shutil.copytree(teacher, tmp_path / "teacher")
    job = lesson(on_policy=0.0, teacher=str(own), job_judge=False)
    break_at(3, job, monkeypatch)
    weights = load_file(own / "model.safetensors")
    weights["model.norm.weight"] *= 1.5
    save_file(weights, own / "model.safetensors", metadata={"format": "pt"})
    capsys.readouterr()
    trained(job)
    said = capsys.readouterr().err
    assert f"checkpoint-2 is not used: {own}" in said, said


def test_the_base_of_a_module_is_a_teacher_in_one_copy(
    align, trained_once, tiny_model, monkeypatch, tmp_path
):
    """A module is drawn back to its own base, loaded once: the divergence is positive and falls."""
    earlier = trained_once("sft")
    shutil.copytree(earlier.run, tmp_path / "run")
    monkeypatch.setattr(
        "trainers.distill.load_teacher", lambda *_: pytest.fail("a second copy was loaded")
    )
    job = align(
        "distill", earlier=(earlier.stage,), teacher=str(tiny_model), on_policy=0.0, beta=0.0,
        max_steps=12, answers="data",
    )  # fmt: skip
    found = trained(job)["evaluation"]["metrics"]["divergence from the teacher"]
    assert found["before"] > 0.005
    assert found["after"] < 0.5 * found["before"]


def test_a_server_generates_the_students_answers(lesson, tiny_model):
    """`rollouts: vllm` hands over weights before those steps that the student answers."""
    with StandIn(tiny_model) as server:
        job = lesson(rollouts="vllm", on_policy=0.5, max_steps=4, job_judge=False)
        launch = Launch(vllm=VLLMServer(url=server.url))
        trained(replace(job, plan=structs.replace(job.plan, launch=launch)))
        assert len(server.loaded) == 2
        assert not server.adapters


def test_a_process_that_asks_nothing_hands_over_weights_with_the_others():
    """All processes wait for the server, unless the step has no answers of the student."""
    trainer = Mock(stage=SimpleNamespace(seq_len=8))
    for features in ([{"input_ids": [5] * 8, "labels": [-100] * 4 + [5] * 4}], []):
        assert Distilling.answer(trainer, features) == features
    trainer.engine.load_weights.assert_called_once_with()


@pytest.fixture
def problems(tmp_path):
    """Twelve requests with an answer to check, which nobody learns."""
    rows = [{"prompt": f"What is {n} + {n}?", "answer": str(2 * n)} for n in range(12)]
    return write_rows(tmp_path / "problems.jsonl", rows)


def test_a_teacher_answers_what_the_data_do_not(lesson, problems, monkeypatch):
    """Answers are kept in the run folder, and after a crash only missing ones are written."""
    monkeypatch.setattr("trainers.teachers.teacher.BLOCK", 4)
    keys = {"on_policy": 0.0, "job_data": problems, "max_steps": 2, "holdout": 0.25}
    keys |= {"job_judge": False}
    whole = trained(lesson(**keys))
    (folder,) = (lesson(**keys).run / "prepared").glob("*-teacher-*")
    written = {file.name: file.read_bytes() for file in sorted(folder.iterdir())}
    assert list(written) == ["0.json", "1.json", "2.json"]
    answers = [one for text in written.values() for one in json.loads(text)["value"]]
    assert len(answers) == 12
    note = next(note for note in whole["data"]["notes"] if "the teacher wrote" in note)
    cut = sum(not ended for _, ended in answers)
    assert note.startswith("the teacher wrote 12 answers of ")
    assert note.endswith(f"{cut} are cut at response_tokens 6")
    assert whole["data"]["learned_tokens"] == sum(len(ids) for ids, _ in answers[3:])
    measured = whole["measured"]
    assert 0 < measured["learned_tokens"] < measured["tokens"] <= measured["computed_tokens"]
    again = lesson(**keys, job_run=folder.parent.parent.parent / "again")
    half = again.run / "prepared" / folder.name
    half.mkdir(parents=True)
    (half / "0.json").write_bytes(written["0.json"])
    (half / "1.json").write_bytes(written["1.json"].replace(b"true", b"false"))
    (half / "2.json").write_bytes(written["2.json"][:-40])
    assert trained(again)["data"] == whole["data"]
    assert {file.name: file.read_bytes() for file in half.iterdir()} == written


def test_accumulation_does_not_change_the_divergence(lesson, tmp_path):
    """Eight rows at once and four times two rows are one step with one loss and one gradient."""
    keys = {"on_policy": 0.0, "max_steps": 1, "holdout": 0.0, "dropout": 0.0}
    found = []
    for size in (8, 2):
        job = lesson(
            **keys, micro_batch_size=size, grad_accum=8 // size, job_judge=False,
            job_max_steps=1, job_run=tmp_path / f"run-{size}",
        )  # fmt: skip
        distill.train(job)
        line = metrics(job)[0]
        found.append((line["loss"], line["grad_norm"]))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_dry_run_measures_answers_of_the_longest_kind(lesson, problems):
    """The teacher writes nothing; answers are taken as long as the plan allows."""
    job = lesson(on_policy=0.5, job_data=problems, job_dry_run=True)
    distill.train(job)
    assert json.loads((job.output / "dry_run.json").read_text())
    assert not list(job.run.glob("prepared/*-teacher-*"))


def test_the_rows_of_tasks_are_looked_at_before_any_teacher_answers(lesson, problems, monkeypatch):
    """A teacher is loaded when its task begins, which knows the attention of this machine."""
    monkeypatch.setattr(distill, "load_teacher", None)
    check_rows([lesson(attention="auto", job_data=problems)])


def test_on_policy_alone_the_teacher_answers_held_out_requests_only(lesson, problems):
    """The student answers every request of training itself."""
    result = trained(lesson(on_policy=1.0, job_data=problems, max_steps=2, holdout=0.25))
    notes = result["data"]["notes"]
    assert any(note.startswith("the teacher wrote 3 answers") for note in notes)
    assert "the student itself answers the 9 requests of training" in notes
    assert result["evaluation"]["metrics"]["divergence from the teacher"]["rows"] == 3


@pytest.mark.usefixtures("unloaded")
def test_another_vocabulary_is_refused_before_a_model_loads(lesson, teacher, tmp_path):
    """A teacher whose tokens have other numbers cannot correct; the error says what to do."""
    other = shutil.copytree(teacher, tmp_path / "other")
    content = json.loads((other / "tokenizer.json").read_text())
    vocabulary = content["model"]["vocab"]
    first, second = sorted(vocabulary)[40:42]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (other / "tokenizer.json").write_text(json.dumps(content))
    why = r"another vocabulary[\s\S]*2 tokens have other numbers[\s\S]*train on the teacher's texts"
    with pytest.raises(InputError, match=f"has {why} instead"):
        distill.train(lesson(teacher=str(other)))


@pytest.mark.usefixtures("unloaded")
@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"teacher": None}, "needs a teacher"),
        ({"teacher": "./nowhere"}, "teacher: no such folder"),
        ({"answers": "teacher", "response_tokens": 500}, "leave no room for a prompt"),
        ({"trl": {"loss_type": "dft"}}, "'loss_type' has no effect"),
        ({"rollouts": "vllm", "on_policy": 0.0}, "rollouts: vllm has no effect"),
    ],
    ids=["none", "no-folder", "no-room", "loss-type", "server"],
)
def test_what_cannot_be_distilled_is_said_before_the_model_loads(keys, message, lesson):
    """A missing teacher, answers longer than the rows and another loss are refused."""
    with pytest.raises(InputError, match=message):
        distill.train(lesson(**keys))


PROMPTS = [f"prompt {number}" for number in range(3 * BLOCK + 5)]


def answer(prompt, number):
    return Written([number, len(prompt), int(prompt.split()[1])], ended=number % 2 == 0)


class Teacher:
    """Answers blocks, and remembers who asked for which."""

    def __init__(self):
        self.asked = []

    def __call__(self, block, number):
        self.asked.append((threading.current_thread().name, number))
        return [answer(prompt, number) for prompt in block]


@pytest.fixture
def processes(monkeypatch):
    """Two threads stand for two processes, which see each other's files alone."""
    monkeypatch.setenv("WORLD_SIZE", "2")

    def rank():
        name = threading.current_thread().name
        return int(name) if name.isdigit() else 0

    monkeypatch.setattr(module, "process_rank", rank)
    monkeypatch.setattr(module, "is_main_process", lambda: rank() == 0)

    def run(path, teacher):
        found = {}

        def work():
            found[rank()] = written_answers(path, PROMPTS, teacher)

        threads = [threading.Thread(target=work, name=str(number)) for number in (1, 0)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        return found

    return run


def test_several_processes_share_out_what_one_writes(tmp_path, processes, monkeypatch):
    """Each answers every second block; later calls ask only for missing or damaged blocks."""
    teacher = Teacher()
    both = processes(tmp_path / "two", teacher)
    assert sorted(teacher.asked) == [("0", 0), ("0", 2), ("1", 1), ("1", 3)]
    monkeypatch.setenv("WORLD_SIZE", "1")
    one = written_answers(tmp_path / "one", PROMPTS, Teacher())
    assert (len(one), both) == (3 * BLOCK + 5, {0: one, 1: one})
    monkeypatch.setenv("WORLD_SIZE", "2")
    again = Teacher()
    assert processes(tmp_path / "two", again) == both
    assert not again.asked
    (tmp_path / "two" / "1.json").unlink()
    with (tmp_path / "two" / "2.json").open("r+b") as file:
        file.truncate(100)
    assert (processes(tmp_path / "two", again), sorted(again.asked)) == (both, [("0", 2), ("1", 1)])


ROWS = {"rows": 3 * BLOCK}


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """The blocks that the base was asked for: every sixth answer is cut, the others end."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = []

    def answer(self, block, number):
        found.append(number)
        ids = [[self.tokenizer.eos_token_id] * 8 for _ in block]
        return [Written(one, ended=place % 6 > 0) for place, one in enumerate(ids)]

    monkeypatch.setattr(Answering, "__call__", answer)
    return found


def test_the_estimate_counts_what_is_written():
    assert (whole_time.REPLAY_BLOCK, whole_time.REPLAY_LIMIT) == (BLOCK, replay.ANSWER_TOKENS)


def rows_of(job):
    return sft.SFT.of(job).rows(job, load_tokenizer(job))


def test_the_bundled_prompts_are_five_hundred_and_none_of_them_is_measured_on():
    prompts = [json.loads(line)["prompt"] for line in replay.BUNDLED.open(encoding="utf-8")]
    measured = {json.loads(line)["prompt"].lower() for line in GENERAL.open(encoding="utf-8")}
    assert len(set(prompts)) == len(prompts) == 500
    assert not measured & {prompt.lower() for prompt in prompts}


def test_the_base_answers_as_many_prompts_as_the_share_asks_for(make, asked):
    """A third of the tokens are general rows, of which the cut ones are left out and counted; the
    rest of the prompts is not asked, held-out rows stay as they are, and both are said.
    """
    alone, mixed = rows_of(make()), rows_of(make(replay=ROWS, replay_share=1 / 3))
    assert (mixed.tokens - alone.tokens) / mixed.tokens == pytest.approx(1 / 3, abs=0.04)
    assert (list(alone.holdout), asked) == (list(mixed.holdout), list(range(len(asked))))
    assert len(asked) < 3
    told = " ".join(mixed.notes)
    assert "rows of general text mixed in: 3" in told
    assert "answers were cut at 64 tokens and left out" in told
    assert mixed.digest != alone.digest
    assert mixed.learned_tokens - alone.learned_tokens == 8 * (len(mixed.train) - len(alone.train))


def test_answers_are_kept_for_this_run_and_the_next(make, asked, tmp_path):
    """A run that resumes, and another run of the same base, ask nothing twice; a damaged file is
    asked for again.
    """
    first = rows_of(make(replay=ROWS))
    count = len(asked)
    other = rows_of(make(replay=ROWS, job_run=tmp_path / "other"))
    again = rows_of(make(replay=ROWS))
    assert len(asked) == count > 0
    assert first.digest == other.digest == again.digest
    for path in (tmp_path / "cache").rglob("*.json"):
        path.write_text("{")
    assert rows_of(make(replay=ROWS, job_run=tmp_path / "third")).digest == first.digest
    assert len(asked) == 2 * count


def test_two_processes_come_to_the_rows_of_one(make, asked, monkeypatch):
    """Each writes its blocks, and the rows that are taken do not depend on how many there were."""
    job = make(replay=ROWS, replay_share=0.5)
    one = rows_of(job)
    monkeypatch.setattr(replay, "process_count", lambda: 2)
    assert one.digest == rows_of(replace(job, run=job.run.parent / "two")).digest


def test_a_dry_run_writes_no_answer(make, asked):
    """Stand-ins take their place, the first as long as an answer may be."""
    data = rows_of(make(replay=ROWS, job_dry_run=True))
    assert not asked
    assert max(row.learned for row in data.train) >= 64


def test_a_file_of_general_rows_is_mixed_in(make, tmp_path):
    general = write_rows(
        tmp_path / "general.jsonl",
        ({"prompt": f"What is {n} plus 1?", "completion": f"It is {n + 1}."} for n in range(40)),
    )
    data = rows_of(make(replay=str(general), replay_share=0.3))
    assert sum("What is" in row.prompt for row in data.train) > 5


def test_a_base_without_a_chat_template_is_refused(make, asked, monkeypatch):
    job = make(replay=ROWS)
    tokenizer = load_tokenizer(job)
    tokenizer.chat_template = None
    with pytest.raises(InputError, match="no chat template, so that it cannot answer prompts"):
        sft.SFT.of(job).rows(job, tokenizer)


def test_nothing_is_mixed_in_where_every_answer_was_cut(make, monkeypatch, tmp_path):
    """It is said, and the stage trains on its own rows."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cut = lambda self, block, number: [Written([5], ended=False)] * len(block)  # noqa: E731
    monkeypatch.setattr(Answering, "__call__", cut)
    assert rows_of(make(replay={"rows": 10})).notes[-1] == "no general text is mixed in"


@pytest.mark.parametrize("update", ["lora", "full"])
def test_a_run_with_general_rows_resumes_with_the_same_weights(make, update, monkeypatch, tmp_path):
    """A run that reads the answers that are kept has the bits of one that loaded the base to write
    them. (A random base ends no answer: here the limit counts as its end.)
    """
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write = Answering.__call__
    ends = lambda *asks: [one._replace(ended=True) for one in write(*asks)]  # noqa: E731
    monkeypatch.setattr(Answering, "__call__", ends)
    keys = {"update": update, "replay": {"rows": 40}, "save_steps": 1, "max_steps": 4}
    keys |= {"learning_rate": 1e-3}
    whole, broken = whole_and_broken(make, 2, monkeypatch, **keys)
    assert same(weights(whole), weights(broken))
    assert any("of general text mixed in" in note for note in rows_of(whole).notes)
