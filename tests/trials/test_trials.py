"""People who never saw the product go through the wizard, on a small and on a large screen."""

import pytest

pytest.importorskip("pexpect")
pytest.importorskip("pyte")

from tests.trials.trial import MENU, people, person, run

MOST_LINES = 40
ON_A_LARGE_SCREEN = people()[:2]  # of the others the small screen, which is the harder one
assert len(people()) >= 7  # kinds of people
TRIALS = [
    pytest.param(
        name, *size, id=f"{name}-{size[0]}x{size[1]}",
        marks=pytest.mark.slow if size == (80, 24) or name in ON_A_LARGE_SCREEN else pytest.mark.long,
    )
    for name in people()
    for size in ((80, 24), (120, 40))
]  # fmt: skip


@pytest.mark.parametrize(("name", "columns", "rows"), TRIALS)
def test_nobody_is_sent_away_and_the_answer_is_on_one_screen(name, columns, rows, tmp_path):
    """At most forty lines, with a command to type and the words that this person has to see."""
    trial = run(name, tmp_path, columns=columns, rows=rows)
    assert trial.dead_ends == []
    assert 0 < len(trial.answer) <= MOST_LINES, "\n".join(trial.answer)
    # The answer's first line stands on the screen together with the menu that says what to do.
    begins = next(filter(str.strip, trial.answer))[:60]
    assert any(begins in line for line in trial.screen), "\n".join(trial.screen)
    assert any(MENU in line for line in trial.screen), "\n".join(trial.screen)
    printed = " ".join(" ".join([*trial.printed, *trial.screen]).split()).lower()
    assert [words for words in person(name)["sees"] if words.lower() not in printed] == [], printed
