"""`python -m tests.trials [NAME ...]`: let each person go through the wizard, and print what it took.

With one name the screen at the end and every key follow.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from tests.trials.trial import people, run

SIZES = ((80, 24), (120, 40))


def main() -> None:
    names = sys.argv[1:] or people()
    print(f"{'person':<14}{'screen':>8}{'questions':>11}{'lines':>7}{'to command':>12}  dead ends")
    for name in names:
        for columns, rows in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                trial = run(name, Path(folder), columns=columns, rows=rows)
            print(
                f"{name:<14}{f'{columns}x{rows}':>8}{len(trial.questions):>11}"
                f"{len(trial.answer):>7}{trial.lines_read:>12}  {'; '.join(trial.dead_ends) or '-'}"
            )
            if len(names) == 1:
                for question, pressed in trial.questions:
                    print(f"  {question}\n    {pressed}")
                print(*trial.answer, sep="\n")
                print("-" * columns, *trial.screen, "-" * columns, sep="\n")


if __name__ == "__main__":
    main()
