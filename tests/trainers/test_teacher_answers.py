"""A teacher's answers, written by one process or shared out over several."""

import threading

import pytest

from trainers.teachers import answers
from trainers.teachers.answers import BLOCK, Written, read_answers, written_answers

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

    monkeypatch.setattr(answers, "process_rank", rank)
    monkeypatch.setattr(answers, "is_main_process", lambda: rank() == 0)

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
    """Each of two answers every second block, both come to the answers of one process, and none of
    the files for blocks is left. A second call asks nobody.
    """
    teacher = Teacher()
    both = processes(tmp_path / "two.jsonl", teacher)
    assert sorted(teacher.asked) == [("0", 0), ("0", 2), ("1", 1), ("1", 3)]
    monkeypatch.setenv("WORLD_SIZE", "1")
    one = written_answers(tmp_path / "one.jsonl", PROMPTS, Teacher())
    assert both == {0: one, 1: one}
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.jsonl", "two.jsonl"]
    monkeypatch.setenv("WORLD_SIZE", "2")
    again = Teacher()
    assert processes(tmp_path / "two.jsonl", again) == both
    assert not again.asked


def test_what_an_interrupted_attempt_has_is_not_asked_again(tmp_path, processes, monkeypatch):
    """The blocks that either process had finished stay."""
    path = tmp_path / "two.jsonl"
    monkeypatch.setenv("WORLD_SIZE", "1")
    written_answers(tmp_path / "one.jsonl", PROMPTS, Teacher())
    lines = (tmp_path / "one.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "two.blocks").mkdir()
    (tmp_path / "two.blocks" / "0.jsonl").write_bytes(b"".join(lines[:BLOCK]))
    (tmp_path / "two.blocks" / "3.jsonl").write_bytes(b"".join(lines[3 * BLOCK :]))
    monkeypatch.setenv("WORLD_SIZE", "2")
    teacher = Teacher()
    processes(path, teacher)
    assert sorted(teacher.asked) == [("0", 2), ("1", 1)]
    assert read_answers(path) == read_answers(tmp_path / "one.jsonl")
