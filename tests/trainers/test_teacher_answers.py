"""A teacher's answers, written by one process or shared out over several."""

import threading

import pytest

from trainers.teachers import teacher as module
from trainers.teachers.teacher import BLOCK, Written, written_answers

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
    assert len(one) == 3 * BLOCK + 5
    assert both == {0: one, 1: one}
    monkeypatch.setenv("WORLD_SIZE", "2")
    again = Teacher()
    assert processes(tmp_path / "two", again) == both
    assert not again.asked
    (tmp_path / "two" / "1.json").unlink()
    with (tmp_path / "two" / "2.json").open("r+b") as file:
        file.truncate(100)
    assert processes(tmp_path / "two", again) == both
    assert sorted(again.asked) == [("0", 2), ("1", 1)]
