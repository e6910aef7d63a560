"""Compare the outputs of this tree with those of the commit in tests/frozen/BASE.

python -m tools.frozen [--count N] [--seed N] [--base COMMIT] [--train]
python -m tools.frozen --write     renew tests/frozen/situations.txt and estimates.txt
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.frozen.specs import specs
from tests.trials.trial import run as run_trial
from tests.trials.trial import write_files
from tools.frozen.comparing import EXACT, changes, table
from tools.frozen.situations import Answers, answers_document, drawn_answers, situation_line

ROOT = Path(__file__).resolve().parent.parent.parent
FROZEN = ROOT / "tests" / "frozen"
SITUATIONS = Path(__file__).with_name("situations.py")
NOT_SPEC = ("id", "source", "page", "commit", "measured_gib", "card_gib", "tokens_per_s_per_gpu")
ESTIMATES = "from tests.frozen.specs import lines; print(*lines(), sep='\\n')"
COLUMNS = 100
LOSSES = 1e-6  # how far they may differ on one machine

Outputs = dict[str, Any]  # group -> name of the case -> what came out


def read(path: Path) -> Any:
    """The content of a YAML file."""
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506


class Side:
    """One of the two trees, and an empty folder that its commands run in."""

    def __init__(self, tree: Path, folder: Path, cases: Mapping[str, Any]) -> None:
        self.tree, self.folder, self.cases = tree, folder, cases
        kept = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        own = ("HOME", "XDG_CACHE_HOME", "XDG_STATE_HOME", "XDG_DATA_HOME")
        self.environment = kept | {name: str(folder / ".own" / name) for name in own}
        self.environment |= {
            "PYTHONPATH": str(tree),
            "PYTHONUTF8": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
            "COLUMNS": str(COLUMNS),
        }

    def work(self, name: str) -> Path:
        """A new folder with the files of the cases."""
        folder = self.folder / name.replace(" ", "-")
        write_files(self.cases, folder)
        return folder

    def call(self, *arguments: str, folder: Path, given: str = "") -> tuple[int, str, str]:
        """Exit code, standard output and standard error of a Python with this tree."""
        done = subprocess.run(
            [sys.executable, "-P", *arguments],
            cwd=folder,
            env=self.environment,
            input=given,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    def answer(self, answers: list[Answers], name: str) -> list[Any]:
        """The documents of these situations, in one process."""
        folder = self.work(name)
        code, out, err = self.call(str(SITUATIONS), folder=folder, given=json.dumps(answers))
        if code:
            raise SystemExit(f"{self.tree} cannot answer situations:\n{err}")
        return list(json.loads(out))

    def estimates(self, name: str, specs: list[dict[str, Any]]) -> Any:
        """The answers to run specs."""
        folder, given = self.work(name), json.dumps(specs)
        arguments = ("-m", "advisor", "estimate", "--json", "--specs", "-")
        code, out, err = self.call(*arguments, folder=folder, given=given)
        return json.loads(out) if code == 0 else self.plain(err)

    def plan(self, answers: Answers, name: str) -> list[str]:
        """The launch file that the answers lead to, or why there is none."""
        folder = self.work(f"plan {name}")
        (folder / "answers.yaml").write_text(json.dumps(answers))
        arguments = ("-m", "advisor", "--answers", "answers.yaml", "--plan", "plan.yaml", "--json")
        _, _, err = self.call(*arguments, folder=folder)
        written = folder / "plan.yaml"
        return self.plain(written.read_text() if written.exists() else err)

    def transcript(self, arguments: list[str] | str, name: str) -> list[str]:
        """What a command prints and writes, or what a person sees of the wizard."""
        folder = self.work(f"transcript {name}")
        if isinstance(arguments, str):
            own = self.environment | {"XDG_STATE_HOME": str(folder / ".state")}
            trial = run_trial(arguments, folder, columns=COLUMNS, rows=40, environment=own)
            return self.plain("\n".join((*trial.printed, *trial.dead_ends)))
        write_files({"files": self.cases["other_files"]}, folder)
        before = set(folder.rglob("*"))
        code, out, err = self.call("-m", "advisor", *arguments, folder=folder)
        made = sorted(path for path in set(folder.rglob("*")) - before if path.is_file())
        files = "".join(f"{path}:\n{path.read_text(errors='replace')}\n" for path in made)
        return self.plain(f"{out}\nstandard error:\n{err}\nexit code {code}\n{files}")

    def losses(self, training: Mapping[str, Any], name: str, model: Path) -> list[Any]:
        """Loss and norm of the gradient of every step of a run on the tiny model."""
        folder = self.work(f"train {name}")
        (folder / "tiny").symlink_to(model)
        common = self.cases["trainings"]["common"]
        stages = [
            {key: value for key, value in (common | stage).items() if value is not None}
            for stage in training["stages"]
        ]
        plan = {"version": 1, "model": "tiny", "data": {"path": training["data"]}, "stages": stages}
        (folder / "plan.yaml").write_text(json.dumps(plan))
        arguments = ("-m", "advisor", "run", "plan.yaml", "--output", "out", "--no-judge")
        code, _, err = self.call(*arguments, folder=folder)
        metrics = folder / "out" / "metrics.jsonl"
        if code or not metrics.exists():
            return [f"exit code {code}", *self.plain(err)]
        lines = map(json.loads, metrics.read_text().splitlines())
        keys = ("stage", "step", "loss", "grad_norm")
        return [{key: line.get(key) for key in keys} for line in lines]

    def plain(self, text: str) -> list[str]:
        """The lines without the names of folders."""
        for place, word in ((self.folder, "FOLDER"), (self.tree, "TREE")):
            text = text.replace(str(place), word)
        return [line.rstrip() for line in text.splitlines()]


def outputs_of(side: Side, given: Mapping[str, Any], model: Path | None) -> Outputs:
    """Everything that is compared, of one tree."""
    found: Outputs = {
        group: dict(zip(given[group], side.answer(list(given[group].values()), group), strict=True))
        for group in ("situation", "scenario")
    }
    for group in ("memory", "throughput", "estimate"):
        found[group] = dict(
            zip(given[group], side.estimates(group, list(given[group].values())), strict=True)
        )
    cases = side.cases
    found["plan"] = {name: side.plan(answers, name) for name, answers in cases["plans"].items()}
    found["transcript"] = {
        name: side.transcript(arguments, name) for name, arguments in cases["transcripts"].items()
    }
    trainings = {name: each for name, each in cases["trainings"].items() if name != "common"}
    if model is not None:
        found["losses"] = {name: side.losses(each, name, model) for name, each in trainings.items()}
    return found


def inputs_of(tree: Path, seed: int, count: int) -> dict[str, dict[str, Any]]:
    """Situations, scenarios and published runs of this tree, which both trees get."""
    facts = read(tree / "rules" / "facts.yaml")["facts"]
    found: dict[str, dict[str, Any]] = {
        "situation": {str(number): drawn_answers(facts, seed, number) for number in range(count)},
        "scenario": {},
    }
    folders = ("scenarios", "objectives", "updates", "document", "evidence")
    for path in sorted(path for name in folders for path in (tree / "rules" / name).glob("*.yaml")):
        document = read(path)
        rules = [rule for listed in (document.get("tables") or {}).values() for rule in listed]
        for part in (document, *rules):
            for case in part.get("scenarios") or ():
                if "task" in case["given"]:
                    known = {name: one for name, one in case["given"].items() if name in facts}
                    found["scenario"][case.get("id") or part["id"]] = answers_document(facts, known)
    for group in ("memory", "throughput"):
        published = read(tree / "tests" / "data_cases" / f"{group}.yaml")
        found[group] = {
            case["id"]: published["defaults"]
            | {key: value for key, value in case.items() if key not in NOT_SPEC}
            for case in published["cases"]
        }
    found["estimate"] = {
        f"{name} {n}": one for name, all_ in specs().items() for n, one in enumerate(all_)
    }
    return found


@contextmanager
def tree_of(commit: str, folder: Path) -> Iterator[Path]:
    """A worktree of the commit, removed at the end."""
    git = ("git", "-C", str(ROOT), "worktree")
    subprocess.run([*git, "add", "--quiet", "--detach", str(folder), commit], check=True)
    try:
        yield folder
    finally:
        subprocess.run([*git, "remove", "--force", str(folder)], check=True)


def compare(base: str, *, seed: int, count: int, train: bool) -> int:
    """Print what differs from the base; 1 if something differs for no stated reason."""
    with tempfile.TemporaryDirectory() as name, tree_of(base, Path(name) / "tree") as tree:
        cases, given = read(FROZEN / "cases.yaml"), inputs_of(tree, seed, count)
        model = Path(name) / "tiny" if train else None
        if model is not None:
            from tests.conftest import save_tiny_model  # with torch

            save_tiny_model(model)
        sides = [
            Side(each, Path(name) / word, cases) for each, word in ((tree, "then"), (ROOT, "here"))
        ]
        for side in sides:
            side.folder.mkdir()
        with ThreadPoolExecutor(2) as both:
            before, after = both.map(lambda side: outputs_of(side, given, model), sides)
    compared = ", ".join(f"{len(before[group])} {group}" for group in before)
    found = [
        change
        for group, expected in before.items()
        for case in expected
        for change in changes(
            expected[case],
            after[group][case],
            key=f"{group} {case}" if group in ("plan", "transcript", "losses") else group,
            at=f"{group} {case}",
            limit=LOSSES if group == "losses" else EXACT,
        )
    ]
    told, open_keys = table(found, read(FROZEN / "allowed.yaml") or ())
    print(f"compared with {base}: {compared}\n{told}")
    return 1 if open_keys else 0


def write(seed: int, count: int) -> None:
    """Write the recorded lines anew."""
    answers = inputs_of(ROOT, seed, count)["situation"]
    with tempfile.TemporaryDirectory() as name:
        side = Side(ROOT, Path(name), read(FROZEN / "cases.yaml"))
        documents = side.answer(list(answers.values()), "situations")
        estimates = side.call("-c", ESTIMATES, folder=side.work("estimates"))[1]
    lines = map(situation_line, range(count), answers.values(), documents)
    (FROZEN / "situations.txt").write_text("".join(line + "\n" for line in lines))
    (FROZEN / "estimates.txt").write_text(estimates)


def main() -> int:
    """Compare, or write."""
    parser = argparse.ArgumentParser(prog="python -m tools.frozen", description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--count", type=int, default=300)
    parser.add_argument("--base", default=(FROZEN / "BASE").read_text().strip())
    parser.add_argument("--train", action="store_true", help="compare losses too")
    parser.add_argument("--write", action="store_true", help="renew what is recorded")
    options = parser.parse_args()
    if options.write:
        write(options.seed, options.count)
        return 0
    return compare(options.base, seed=options.seed, count=options.count, train=options.train)


if __name__ == "__main__":
    sys.exit(main())
