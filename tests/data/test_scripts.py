"""Writing systems of the texts."""

from __future__ import annotations

import json

import pytest

from advisor.data import profile
from advisor.data.checks.languages import script_of


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello", "Latin"),
        ("Größe", "Latin"),
        ("Привет, мир", "Cyrillic"),
        ("Καλημέρα", "Greek"),
        ("你好,世界", "Han"),
        ("東京へようこそ", "Japanese"),
        ("안녕하세요", "Hangul"),
        ("مرحبا", "Arabic"),
        ("שלום", "Hebrew"),
        ("नमस्ते", "Devanagari"),
        ("สวัสดี", "Thai"),
        ("12 + 30 = 42", "none"),
        ("🙂🙂", "none"),
        ("Das Wort «мир» ist Russisch", "Latin"),
    ],
)
def test_script_of_a_text(text, script):
    """Most letters decide."""
    assert script_of(text) == script


def test_scripts_of_a_file_are_counted(tmp_path):
    """The profile says how many rows are in which script."""
    rows = [{"text": "Hello there"}] * 3 + [{"text": "Привет"}] * 2
    path = tmp_path / "a.jsonl"
    path.write_text(
        "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8"
    )
    assert profile(path).measures["scripts"] == [
        {"script": "Latin", "rows": 3},
        {"script": "Cyrillic", "rows": 2},
    ]
