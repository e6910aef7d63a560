"""The profile of a file: numbers, findings, what it can train."""

from __future__ import annotations

import gzip
import hashlib
import json
import sys
import time
from collections import Counter
from typing import Any

import pytest

from advisor.data import profile, unusable
from advisor.data.checks.labels import class_findings, plain_label
from advisor.data.checks.languages import script_of
from advisor.data.measure import Depth
from advisor.ground.errors import InputError
from advisor.ground.types import DataProfile
from tests.data.conftest import jsonl

USER, BOT = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}


def pairs(count: int) -> list[dict[str, Any]]:
    return [
        {"question": f"What is {index}?", "answer": f"It is number {index}."}
        for index in range(count)
    ]


def found(profile: DataProfile) -> dict[str, tuple[str, int]]:
    return {finding.id: (finding.severity, finding.count) for finding in profile.findings}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_stands_twice_in_a_row_is_said(tmp_path, name):
    """JSON readers keep the last value of a key: the rows in which one was lost are counted and
    named, in nested objects too.
    """
    rows = [json.dumps(row) for row in pairs(60)]
    rows[3] = '{"question": "What?", "answer": "Lost.", "answer": "Read."}'
    rows[9] = '{"question": "Who?", "answer": "Me.", "about": {"by": 1, "by": 2}}'
    path = tmp_path / name
    path.write_text(
        "\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]", encoding="utf-8"
    )
    finding = next(finding for finding in profile(path).findings if finding.id == "key-twice")
    assert (finding.severity, finding.count, finding.rows, finding.blocks) == (
        "warning",
        2,
        (4, 10),
        (),
    )
    assert "the last one is read, what stood before is lost (rows 4, 10)" in finding.text
    path.write_text(path.read_text().replace('"answer": "Lost.", ', "").replace('"by": 1, ', ""))
    assert "key-twice" not in found(profile(path))


@pytest.mark.parametrize(
    ("row", "objectives"),
    [
        ({"question": "Q", "answer": "A"}, {"sft"}),
        ({"text": "A story."}, {"cpt"}),
        (
            {"prompt": "Q", "chosen": "A", "rejected": "B"},
            {"rm", "dpo", "ppo", "rloo", "kto", "orpo", "simpo", "sft"},
        ),
        ({"prompt": "Q", "ground_truth": "A"}, {"grpo", "rloo", "ppo"}),
    ],
)
def test_each_kind_can_train_its_objectives(tmp_path, row, objectives):
    """Pairs train SFT, texts CPT, preferences the preference methods, checkable prompts the
    reinforcement methods.
    """
    assert set(profile(jsonl(tmp_path, [row])).objectives) == objectives


def test_lengths_are_characters_over_four_and_say_so(tmp_path):
    """Without a tokenizer a token is four characters, and the profile names that."""
    # Rows of 4, 40 and 400 characters: 1, 10 and 100 tokens.
    tokens = profile(
        jsonl(tmp_path, [{"question": "q" * half, "answer": "a" * half} for half in (2, 20, 200)])
    ).tokens
    assert tokens is not None
    assert (tokens.total, tokens.mean, tokens.p50, tokens.longest, tokens.sampled_rows) == (
        111,
        37.0,
        10,
        100,
        None,
    )
    assert tokens.counted_by.startswith("characters / 4 (approximation")
    assert tokens.histogram == ((16, 2), (32, 0), (64, 0), (128, 1))
    assert tokens.request_mean == 18.7  # of 1, 5 and 50


def test_percentiles_are_nearest_ranks(tmp_path):
    """Of the lengths 1 to 100, the 95th percentile is 95."""
    tokens = profile(
        jsonl(tmp_path, [{"text": "x" * 4 * length} for length in range(1, 101)])
    ).tokens
    assert tokens is not None
    assert (tokens.p50, tokens.p90, tokens.p95, tokens.p99, tokens.longest) == (50, 90, 95, 99, 100)


def test_a_given_tokenizer_counts_and_is_named(tmp_path):
    """Words counted by a caller's function replace the approximation."""

    def count_tokens(text: str) -> int:
        return len(text.split())

    count_tokens.name = "tokenizer of words"  # type: ignore[attr-defined]
    tokens = profile(jsonl(tmp_path, pairs(10)), count_tokens=count_tokens).tokens
    assert tokens is not None
    # "What is 1?" and "It is number 1." are three and four words.
    assert (tokens.total, tokens.counted_by, tokens.sampled_rows) == (
        70,
        "tokenizer of words",
        None,
    )


def test_a_tokenizer_counts_a_sample_with_its_error(tmp_path):
    """Many rows are tokenised on a sample; total, sample size and error are stated; --full counts
    all.
    """
    path = jsonl(tmp_path, pairs(3000))
    sampled = profile(path, count_tokens=lambda text: len(text.split()))
    assert sampled.tokens is not None
    assert (sampled.tokens.total, sampled.tokens.sampled_rows) == (21000, 1000)
    assert "±" in next(
        finding.text for finding in sampled.findings if finding.id == "tokens-of-a-sample"
    )
    whole = profile(path, count_tokens=lambda text: len(text.split()), depth=Depth(full=True))
    assert whole.tokens is not None
    assert (whole.tokens.total, whole.tokens.sampled_rows) == (21000, None)


def test_digest_is_that_of_the_bytes(tmp_path):
    """The digest is the sha256 any tool prints for the file."""
    path = jsonl(tmp_path, pairs(3))
    assert profile(path).digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_sample_row_shows_how_it_was_understood(tmp_path):
    """One row is shown in roles, not in columns."""
    sample = profile(
        jsonl(tmp_path, [{"instruction": "Add.", "input": "1 2", "output": "3"}])
    ).sample
    assert sample == {
        "row": 1,
        "messages": [
            {"role": "user", "content": "Add.\n\n1 2"},
            {"role": "assistant", "content": "3"},
        ],
    }


def test_few_unusable_rows_are_a_warning_with_their_numbers(tmp_path):
    """Two rows of sixty without an answer are left out, counted and named."""
    rows = pairs(60)
    rows[9]["answer"] = ""
    rows[19]["answer"] = None
    result = profile(jsonl(tmp_path, rows))
    finding = next(finding for finding in result.findings if finding.id == "row-without-answer")
    assert (finding.severity, finding.count, finding.rows, finding.blocks) == (
        "warning",
        2,
        (10, 20),
        (),
    )
    assert result.objectives == ("sft",)


def test_many_unusable_rows_are_an_error_unless_the_page_is_wanted(tmp_path):
    """A third of the rows without an answer is refused; the page for people still shows the
    file.
    """
    path = jsonl(
        tmp_path,
        [
            {"question": "Q", "answer": "A"},
            {"question": "R", "answer": "B"},
            {"question": "S", "answer": ""},
        ],
    )
    with pytest.raises(InputError, match=r"1 of 3 rows: no answer to learn from \(row 3\)"):
        profile(path)
    shown = profile(path, Depth(strict=False))
    assert shown.objectives == ()
    assert found(shown)["row-without-answer"] == ("error", 1)
    error = unusable(shown)
    assert error is not None
    assert "row 3" in str(error)


def test_unreadable_lines_are_an_error_unless_the_page_is_wanted(tmp_path):
    """Broken JSON stops advice and training; the page names the places."""
    path = jsonl(tmp_path, pairs(3))
    path.write_text(path.read_text() + "{oops\n")
    with pytest.raises(InputError, match=r"a\.jsonl:4:2: invalid JSON"):
        profile(path)
    shown = profile(path, Depth(strict=False))
    assert (shown.rows, shown.objectives) == (3, ())
    assert "a.jsonl:4:2" in shown.findings[0].text


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"question": "Q", "answer": ""}] * 5, "no row can be used"),
        (
            [{"question": f"Q{index}", "answer": "ok"} for index in range(60)],
            "every row has the same answer: 'ok'",
        ),
    ],
)
def test_a_file_without_an_answer_to_learn_is_refused(tmp_path, rows, says):
    """Columns alone are no data, and where every answer is the same there is nothing to learn."""
    with pytest.raises(InputError, match=says):
        profile(jsonl(tmp_path, rows))


def test_duplicates_conflicts_and_constants_are_found(tmp_path):
    """Repeated rows, one question with two answers, and an answer that is everywhere are
    counted.
    """
    rows = pairs(60)
    rows += [rows[0], rows[1], {"question": "What is 2?", "answer": "Two."}]
    rows += [{"question": f"May I {index}?", "answer": "I cannot help."} for index in range(40)]
    result = profile(jsonl(tmp_path, rows))
    findings = found(result)
    assert findings["duplicate-rows"] == ("warning", 2)
    assert findings["same-request-other-answer"] == ("note", 1)
    assert findings["repeated-answer"] == ("warning", 40)
    assert next(finding.rows for finding in result.findings if finding.id == "duplicate-rows") == (
        61,
        62,
    )


def test_feedback_of_one_kind_blocks_kto(tmp_path):
    """Only thumbs up teach nothing."""
    rows = [
        {"prompt": f"Q{index}", "completion": f"A{index}", "label": True} for index in range(60)
    ]
    with pytest.raises(InputError, match="no answer is marked bad"):
        profile(jsonl(tmp_path, rows))
    rows[5]["label"] = False
    assert profile(jsonl(tmp_path, rows)).objectives == ("kto",)


@pytest.mark.parametrize(
    ("answer", "finding"),
    [
        ("Sure.<|im_end|>", "template-marks-in-text"),
        ("The cafÃ© is open.", "mojibake"),
        ("a\x00b", "nul-character"),
        ("long " * 8000, "very-long-rows"),
    ],
)
def test_conspicuous_text_is_a_warning(tmp_path, answer, finding):
    """Template marks, wrongly decoded letters, NUL characters and very long rows are found with
    their row.
    """
    rows = pairs(60)
    rows[6]["answer"] = answer
    result = profile(jsonl(tmp_path, rows))
    assert found(result)[finding] == ("warning", 1)
    assert next(item.rows for item in result.findings if item.id == finding) == (7,)


def turns(*messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Sixty conversations, one of which has these messages."""
    rows = [
        {"messages": [{**USER, "content": f"Hi {index}"}, {**BOT, "content": f"Hello {index}"}]}
        for index in range(60)
    ]
    return [*rows[:2], {"messages": [*messages]}, *rows[3:]]


@pytest.mark.parametrize(
    ("rows", "name", "finding"),
    [
        # Two answers in a row, or a conversation that begins with one, break some templates.
        (turns(BOT, USER, BOT), "turns-do-not-alternate", ("warning", 1)),
        # Where the better answer is nearly always the longer one, length may be what is learned.
        (
            [
                {"prompt": f"Q{n}", "chosen": "long answer " * 3 + str(n), "rejected": "short"}
                for n in range(60)
            ],
            "chosen-is-longer",
            ("note", 60),
        ),
        # Pictures are not trained on.
        ([{**row, "images": ["1.jpg"]} for row in pairs(60)], "media-columns", ("warning", 1)),
        # 'Spam' and 'spam!' would be two classes.
        (
            [
                {"text": f"Message {n} about {label}", "label": label}
                for n in range(30)
                for label in ("Spam", "spam!", "ham")
            ],
            "labels-spelt-alike",
            ("warning", 1),
        ),
    ],
)
def test_what_may_be_learned_amiss_is_said(tmp_path, rows, name, finding):
    """Conversations out of turn, answers better by their length, pictures, classes spelt alike."""
    assert found(profile(jsonl(tmp_path, rows)))[name] == finding


def test_columns_without_a_role_are_named(tmp_path):
    """What is not used is said."""
    result = profile(
        jsonl(
            tmp_path,
            [{**row, "internal_id": index, "team": "x"} for index, row in enumerate(pairs(60))],
        )
    )
    assert "internal_id, team" in next(
        finding.text for finding in result.findings if finding.id == "unused-columns"
    )


def test_large_files_are_measured_on_their_first_rows_and_say_so(tmp_path):
    """Quick is the default: rows are counted exactly, the rest comes from a stated beginning; full
    reads all.
    """
    path = jsonl(
        tmp_path,
        [{"question": f"Q{index} " + "x" * 400, "answer": f"A{index}"} for index in range(12_000)],
    )
    quick, whole = profile(path), profile(path, Depth(full=True))
    assert (quick.rows, whole.rows) == (12_000, 12_000)
    assert quick.tokens is not None
    assert whole.tokens is not None
    assert quick.tokens.sampled_rows == 2000
    assert whole.tokens.sampled_rows is None
    assert abs(quick.tokens.total / whole.tokens.total - 1) < 0.01
    assert "first 2,000 of 12,000 rows" in next(
        finding.text for finding in quick.findings if finding.id == "measured-on-a-sample"
    )
    assert not any(finding.id == "measured-on-a-sample" for finding in whole.findings)


def test_a_large_file_sorted_by_class_is_not_refused(tmp_path):
    """The first rows of a sorted file hold one class; that blocks nothing, but is said."""
    path = jsonl(
        tmp_path,
        [
            {"text": f"Review {index} " + "word " * 80, "label": int(index >= 6000)}
            for index in range(12_000)
        ],
    )
    result = profile(path)
    assert result.objectives == ("sft", "classification")
    assert found(result)["constant-answer"] == ("warning", 2000)


def test_rows_of_large_packed_files_are_an_estimate_and_say_so(tmp_path):
    """Where counting would mean reading all, the number of rows is called an estimate."""
    rows = [
        {
            "question": f"Q{index} {index * 7919 % 10007}",
            "answer": hashlib.sha256(str(index).encode()).hexdigest() * 4,
        }
        for index in range(40_000)
    ]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode(), 1))
    assert "about" in next(
        finding.text for finding in profile(path).findings if finding.id == "measured-on-a-sample"
    )


def test_profiling_is_fast_and_imports_nothing_heavy(tmp_path):
    """A few thousand rows take a fraction of a second and no heavy module."""
    import subprocess

    path = jsonl(tmp_path, pairs(4000))
    code = (
        "import sys; from advisor.data import profile; profile(sys.argv[1]); print('"
        " '.join(sys.modules))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {"torch", "numpy", "pyarrow", "datasets", "pydantic", "rich", "csv", "gzip"} & set(
        loaded
    )
    started = time.process_time()
    profile(path)
    # Measured at 0.04 s; ten times that would spoil the start of the command.
    assert time.process_time() - started < 0.4


def labelled(counts: dict[str, int]) -> list[dict[str, Any]]:
    return [
        {"text": f"Message number {number} about {label}", "label": label}
        for label, count in counts.items()
        for number in range(count)
    ]


def test_classes_are_counted_and_their_balance_judged(tmp_path):
    """Classes with their rows; a class of few rows and one twenty times another are said."""
    result = profile(jsonl(tmp_path, labelled({"a": 100, "b": 50, "c": 5})))
    assert result.measures["classes"] == [
        {"label": "a", "rows": 100},
        {"label": "b", "rows": 50},
        {"label": "c", "rows": 5},
    ]
    assert found(result)["unbalanced-classes"] == ("note", 100)
    assert found(result)["rare-classes"] == ("warning", 1)
    assert result.objectives == ("sft", "classification")
    assert not {"unbalanced-classes", "rare-classes"} & set(
        found(profile(jsonl(tmp_path, labelled({"a": 40, "b": 30}))))
    )


def test_one_class_blocks_classification_too(tmp_path):
    """A single class teaches nothing, whichever way it is trained."""
    assert (
        profile(
            jsonl(tmp_path, labelled({"a": 60})),
            depth=Depth(strict=False),
            mapping={"text": "text", "label": "label"},
        ).objectives
        == ()
    )


def test_turns_are_counted(tmp_path):
    """Conversations with several answers, their mean and the longest."""
    one = [USER, BOT]
    rows = [
        {"messages": one},
        {"messages": one * 3},
        {"messages": [{"role": "system", "content": "Be kind."}, *one, *one]},
    ]
    assert profile(jsonl(tmp_path, rows), Depth(strict=False)).measures["turns"] == {
        "conversations": 3, "multi_turn": 2, "mean": 2.0, "most": 3, "with_system_text": 1,
        "with_tools": 0,
        "with_tool_calls": 0,
    }  # fmt: skip


def test_requests_and_answers_have_lengths_of_their_own(tmp_path):
    """Ten tokens asked, a hundred answered."""
    measures = profile(jsonl(tmp_path, [{"question": "q" * 40, "answer": "a" * 400}])).measures
    assert (measures["request_tokens"]["longest"], measures["answer_tokens"]["longest"]) == (
        10,
        100,
    )


def test_memory_stays_flat_where_rows_are_many(tmp_path, monkeypatch):
    """Beyond the rows that are kept for comparison the rest is compared with those, and that is
    said.
    """
    monkeypatch.setattr("advisor.data.checks.repeats.COMPARED_ROWS", 50)
    result = profile(jsonl(tmp_path, [*pairs(100), pairs(1)[0]]))
    assert found(result)["not-all-rows-compared"] == ("note", 50)
    assert found(result)["duplicate-rows"][1] == 1


def test_check_reads_all_of_a_large_file(tmp_path):
    """Advice looks at the beginning; the check finds the broken row at the end, with its line."""
    from advisor.commands.check import check_data

    path = jsonl(
        tmp_path,
        [{"question": f"Q{index} " + "x" * 400, "answer": f"A{index}"} for index in range(12_000)],
    )
    with path.open("a") as file:
        file.write("{oops\n")
    assert profile(path).objectives == ("sft",)
    result, _ = check_data(str(path))
    assert result.objectives == ()
    assert "a.jsonl:12001:2" in result.findings[0].text


def test_documents_that_are_not_read_are_named_with_a_way_to_their_text(tmp_path):
    """A PDF, a table or an image beside texts is counted and said, with the way to its text; a
    PDF alone is an error that names pdftotext.
    """
    for number in range(6):
        (tmp_path / f"{number}.md").write_text(f"# Title {number}\n\n" + "a sentence. " * 50)
    for name in ("more.pdf", "b.docx", "c.odt", "d.xlsx", "e.png", "f.JPG", "script.py"):
        (tmp_path / name).write_bytes(b"%PDF-1.4")
    found = [one for one in profile(tmp_path).findings if one.id == "files-not-read"]
    assert [(one.severity, one.text.split(";")[0]) for one in found] == [
        ("warning", "not read: 1 .docx, 1 .odt, 1 .pdf"),
        ("warning", "not read: 1 .xlsx"),
        ("note", "not read: 1 .jpg, 1 .png"),
    ]
    assert "pdftotext" in found[0].text
    assert "pandoc" in found[0].text
    assert "CSV" in found[1].text
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "one.pdf").write_bytes(b"%PDF-1.4")
    with pytest.raises(InputError, match="pdftotext"):
        profile(tmp_path / "alone")


def test_a_check_is_found_by_its_file(tmp_path, monkeypatch):
    """A file in the folder of checks is a check: its findings stand among those of the others."""
    from advisor.data import checks

    (tmp_path / "shouting.py").write_text(
        "from advisor.data.checks import RowCheck\n\n\n"
        "class Shouting(RowCheck):\n"
        "    place = 1\n"
        "    says = {'shouting': ('note', '{rows} in capitals')}\n\n"
        "    def see(self, row):\n"
        "        if row.text.isupper():\n"
        "            self.tallies['shouting'].add(row.number)\n"
    )
    monkeypatch.setattr(checks, "__path__", [*checks.__path__, str(tmp_path)])
    rows = [*pairs(60), {"question": "HELLO?", "answer": "YES."}]
    result = profile(jsonl(tmp_path, rows))
    shouting = next(finding for finding in result.findings if finding.id == "shouting")
    assert (shouting.text, shouting.rows) == ("1 row in capitals (row 61)", (61,))


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


def test_a_sorted_file_has_all_its_classes_counted(tmp_path):
    """The first rows hold few of the classes; no number of theirs is told as that of the file."""
    rows = [
        {"text": f"message {number}", "category": f"class {number // 40}"} for number in range(3080)
    ]
    found = profile(jsonl(tmp_path, rows), Depth(whole=True))
    assert found.measures["class_count"] == 77
    assert "of 8 values" not in found.why
    assert "its class in `category`" in found.why


def test_few_rows_of_a_class_are_named_with_their_count():
    """The rarest first."""
    counts = Counter({"billing": 90, "rare": 2, "rarer": 1})
    found = {one.id: one for one in class_findings(counts, enough_rows=True)}
    assert "2 of 3 classes have fewer than 8 rows: 'rarer' (1), 'rare' (2)" in (
        found["rare-classes"].text
    )
    assert "unbalanced-classes" in found
    assert not list(class_findings(Counter({"a": 3, "b": 4}), enough_rows=False))


def test_one_class_written_in_two_ways_is_named_and_signs_keep_classes_apart():
    """Capitals, spaces, underscores and hyphens; C, C++ and C# are three languages, -1 is not 1."""
    counts = Counter(
        {
            "Card lost": 20,
            "card_lost ": 10,
            "CARD-LOST": 9,
            "C": 9,
            "C++": 9,
            "C#": 9,
            "-1": 9,
            "1": 9,
        }
    )
    (found,) = class_findings(counts, enough_rows=True)
    assert found.id == "labels-spelt-alike"
    assert "'Card lost' (20) / 'card_lost ' (10) / 'CARD-LOST' (9)" in found.text
    assert found.count == 1
    assert plain_label("C++") != plain_label("C#")
