"""A folder whose files belong to one team each, and folders that only look like it."""

from pathlib import Path

import pytest

from advisor.data.read.source import team_files

ROW = '{"question": "Q", "answer": "A"}\n'


def folder(where: Path, *names: str) -> Path:
    for name in names:
        (where / name).parent.mkdir(parents=True, exist_ok=True)
        (where / name).write_text(ROW)
    return where


def test_files_and_folders_are_teams_named_after_them(tmp_path):
    """A file or a folder of files is one team; the name becomes one that a plan may have."""
    where = folder(tmp_path, "Legal.jsonl", "Human Resources.csv.gz", "sales/a.txt", "README.md")
    assert team_files(where) == {
        "human-resources": str(where / "Human Resources.csv.gz"),
        "legal": str(where / "Legal.jsonl"),
        "sales": str(where / "sales"),
    }


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "test.jsonl"),
        ("my-train.jsonl", "my_validation.jsonl"),
        ("part-1.jsonl", "part-2.jsonl", "part-10.jsonl"),
        ("2023.csv", "2024.csv"),
        ("train-00000-of-00002.jsonl", "train-00001-of-00002.jsonl"),
        ("legal.jsonl",),
        ("a.md", "b.md"),
        ("dataset_dict.json", "a.jsonl", "b.jsonl"),
    ],
)
def test_one_data_set_in_several_files_is_no_folder_of_teams(tmp_path, names):
    """Splits, parts, documents and a single file belong together."""
    assert team_files(folder(tmp_path, *names)) == {}


def test_names_that_become_the_same_are_no_teams(tmp_path):
    """Two files of one team would hide one of them."""
    assert team_files(folder(tmp_path, "legal.jsonl", "Legal!.csv")) == {}


def test_what_is_no_folder_holds_no_teams(tmp_path):
    """A file, or nothing at all, is no folder of teams."""
    assert team_files(tmp_path / "nothing") == {}
