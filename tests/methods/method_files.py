"""Files of methods as a person writes them, one key a line, so that a test names the line."""

from pathlib import Path

OBJECTIVE = {
    "id": "", "name": "Learning by heart", "about": "the rows are repeated until they are known",
    "meaning": "learns the rows by heart", "order": "900",
    "phrase": '"let {model} learn the rows by heart"', "short": '"learning by heart"',
    "trains_on": "[paired]",
}  # fmt: skip
UPDATE = {
    "id": "", "name": "Biases", "about": "the biases alone are trained",
    "meaning": "trains the biases alone", "order": "900",
    "phrase": '"by training its biases; the rest stays as it is"',
    "phrase_per_task": '"by training its biases for each of {tasks}; the rest stays as it is"',
    "trains": "module", "result": "a set of biases", "arithmetic": "lora",
}  # fmt: skip


def write_objective(root: Path, name: str, /, **changed: str | None) -> Path:
    """rules/objectives/<name>.yaml under `root`; a key given as None is left out."""
    return _write(root / "rules" / "objectives" / f"{name}.yaml", OBJECTIVE, changed)


def write_update(root: Path, name: str, /, **changed: str | None) -> Path:
    """rules/updates/<name>.yaml under `root`; a key given as None is left out."""
    return _write(root / "rules" / "updates" / f"{name}.yaml", UPDATE, changed)


def _write(path: Path, usual: dict[str, str], changed: dict[str, str | None]) -> Path:
    entries = {**usual, "id": path.stem, **changed}
    text = "".join(f"{key}: {value}\n" for key, value in entries.items() if value is not None)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def line_of(path: Path, key: str) -> int:
    """The line, from 1, on which a key of the file stands."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return 1 + next(i for i, line in enumerate(lines) if line.startswith(f"{key}:"))
