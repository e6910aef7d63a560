"""The profile of a file: numbers, what it can train, what lengths cut; `advise check` says so."""

import gzip
import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.advice.facts import situation_facts
from advisor.advice.search.fit import fit_stage
from advisor.advice.search.rows import sequence_length
from advisor.advice.search.settings import StageCase
from advisor.commands.check import check_data
from advisor.data import profile, unusable
from advisor.data.amounts import compare_amounts, data_requirements, in_words, shortages, verdict
from advisor.data.checks.languages import script_of
from advisor.data.measure import Depth, trainable_on
from advisor.ground.errors import InputError
from advisor.ground.resources import rules_dir
from advisor.ground.types import Answer, AnswerSet, DataProfile, TokenStats
from advisor.ground.yaml_files import read_yaml
from advisor.methods import methods, objectives
from advisor.methods.composition import parse_composition
from advisor.methods.model import DATA_KINDS
from advisor.ruleset.facts import load_facts
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from tests.advice.situations import UNKNOWN_MACHINE
from tests.data.conftest import BOT, USER, findings, jsonl, labelled, pairs


@pytest.mark.parametrize("name", ["a.jsonl", "a.json"])
def test_a_key_that_stands_twice_in_a_row_is_said(tmp_path, name, approved):
    """The last value of a key is kept: rows in which one was lost are named, nested ones too."""
    rows = [json.dumps(row) for row in pairs(60)]
    rows[3] = '{"question": "What?", "answer": "Lost.", "answer": "Read."}'
    rows[9] = '{"question": "Who?", "answer": "Me.", "about": {"by": 1, "by": 2}}'
    path = tmp_path / name
    path.write_text("\n".join(rows) if name.endswith("l") else f"[{', '.join(rows)}]")
    approved(findings(path, Depth())["key-twice"])
    path.write_text(path.read_text().replace('"answer": "Lost.", ', "").replace('"by": 1, ', ""))
    assert "key-twice" not in findings(path)


@pytest.mark.parametrize(
    ("rows", "objectives"),
    [
        ([{"question": "Q", "answer": "A"}], {"sft"}),
        ([{"text": "A story."}], {"cpt"}),
        ([{"prompt": "Q", "chosen": "A", "rejected": "B"}],
         {"rm", "dpo", "ppo", "rloo", "kto", "orpo", "simpo", "sft"}),
        ([{"prompt": "Q", "ground_truth": "A"}], {"grpo", "rloo", "ppo"}),
        ([{"prompt": "Q", "completion": f"A{n}", "label": n != 5} for n in range(60)], {"kto"}),
    ],
)  # fmt: skip
def test_each_kind_can_train_its_objectives(tmp_path, rows, objectives):
    """Pairs train SFT, texts CPT, preferences their methods, checkable prompts reinforcement."""
    assert set(profile(jsonl(tmp_path, rows)).objectives) == objectives


def test_lengths_are_characters_over_four_and_say_so(tmp_path, approved):
    """Without a tokenizer a token is four characters, and percentiles are nearest ranks."""
    # Rows of 4, 40 and 400 characters: 1, 10 and 100 tokens, of which requests are 1, 5 and 10.
    halves = ((2, 2), (20, 20), (40, 360))
    rows = [{"question": "q" * asked, "answer": "a" * said} for asked, said in halves]
    found = profile(jsonl(tmp_path, rows))
    hundred = [{"text": "x" * 4 * size} for size in range(1, 101)]
    approved([found.tokens, found.measures, profile(jsonl(tmp_path, hundred)).tokens])


def test_a_tokenizer_counts_a_sample_with_its_error(tmp_path, approved):
    """Many rows are counted on a sample, whose size and error are stated; --full counts all."""

    def count_tokens(text):
        return len(text.split())

    count_tokens.name = "tokenizer of words"
    # "What is 1?" and "It is number 1." are three and four words.
    path = jsonl(tmp_path, pairs(3000))
    sampled, whole = (
        profile(path, count_tokens=count_tokens, depth=depth)
        for depth in (Depth(), Depth(full=True))
    )
    approved([sampled.tokens, sampled.findings, whole.tokens])


def test_the_digest_is_that_of_the_bytes_and_the_sample_row_is_shown_in_roles(tmp_path, approved):
    """The digest is the sha256 any tool prints for the file; columns without a role are named."""
    rows = [{"instruction": f"Add {n}.", "input": "1 2", "output": "3", "internal_id": 1, "team": n}
            for n in range(60)]  # fmt: skip
    path = jsonl(tmp_path, rows)
    result = profile(path)
    assert result.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    approved([result.sample, result.findings])


def test_many_unusable_rows_are_an_error_unless_the_page_is_wanted(tmp_path, approved):
    """A third of the rows without an answer is refused; the page still shows the file."""
    path = jsonl(tmp_path, [*pairs(2), {"question": "S", "answer": ""}])
    with pytest.raises(InputError, match=r"1 of 3 rows: no answer to learn from \(row 3\)"):
        profile(path)
    shown = profile(path, Depth(strict=False))
    approved([shown.objectives, shown.findings, unusable(shown)])


THUMBS_UP = [{"prompt": f"Q{n}", "completion": f"A{n}", "label": True} for n in range(60)]


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([{"question": "Q", "answer": ""}] * 5, "no row can be used"),
        ([{"question": f"Q{index}", "answer": "ok"} for index in range(60)],
         "every row has the same answer: 'ok'"),
        (THUMBS_UP, "no answer is marked bad"),
    ],
)  # fmt: skip
def test_a_file_without_an_answer_to_learn_is_refused(tmp_path, rows, says):
    """Columns alone teach nothing, nor do rows that all have one answer or all a thumb up."""
    with pytest.raises(InputError, match=says):
        profile(jsonl(tmp_path, rows))


def test_large_files_are_measured_on_their_first_rows_and_say_so(tmp_path, approved):
    """Rows are counted exactly and measured on their beginning; --full and the check read all."""
    path = jsonl(
        tmp_path, [{"question": f"Q{n} " + "x" * 400, "answer": f"A{n}"} for n in range(12_000)]
    )
    quick, whole = profile(path), profile(path, Depth(full=True))
    with path.open("a") as file:
        file.write("{oops\n")
    found = (quick, whole, profile(path), check_data(str(path))[0])
    approved([[one.rows, one.tokens, one.objectives, one.findings] for one in found])


def test_a_large_file_sorted_by_class_is_not_refused(tmp_path, approved):
    """First rows of one class block nothing, are said, and give no number for the whole file."""
    rows = [{"text": f"Review {n} " + "word " * 80, "label": int(n >= 6000)} for n in range(12_000)]
    first = profile(jsonl(tmp_path, rows))
    rows = [{"text": f"message {n}", "category": f"class {n // 40}"} for n in range(3080)]
    whole = profile(jsonl(tmp_path, rows), Depth(whole=True))
    approved([first.objectives, first.findings, whole.measures["class_count"], whole.why])


def test_rows_of_large_packed_files_are_an_estimate_and_say_so(tmp_path):
    """Where counting would mean reading all, the number of rows is called an estimate."""
    answers = (hashlib.sha256(str(n).encode()).hexdigest() * 4 for n in range(40_000))
    lines = (f'{{"question": "Q{n}", "answer": "{text}"}}\n' for n, text in enumerate(answers))
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress("".join(lines).encode(), 1))
    assert "about" in findings(path)["measured-on-a-sample"].text


def test_profiling_is_fast_and_imports_nothing_heavy(tmp_path):
    """A few thousand rows take a fraction of a second and no heavy module."""
    path = jsonl(tmp_path, pairs(4000))
    code = "import sys; from advisor.data import profile; profile(sys.argv[1]); print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "numpy", "pyarrow", "datasets", "pydantic", "rich", "csv", "gzip"}
    assert not heavy & set(done.stdout.split())
    started = time.process_time()
    profile(path)
    # Measured at 0.04 s; ten times that would spoil the start of the command.
    assert time.process_time() - started < 0.4


def test_classes_turns_and_scripts_are_counted(tmp_path, approved):
    """Classes with their rows (one class teaches nothing), turns of conversations, and scripts."""
    conversations = [
        {"messages": [USER, BOT]},
        {"messages": [USER, BOT] * 3},
        {"messages": [{"role": "system", "content": "Be kind."}, USER, BOT, USER, BOT]},
    ]
    greetings = [{"text": "Hello there"}] * 3 + [{"text": "Привет"}] * 2
    mapping = {"text": "text", "label": "label"}
    found = [
        profile(jsonl(tmp_path, labelled(billing=90, rare=2, rarer=1))),
        profile(jsonl(tmp_path, labelled(a=60)), Depth(strict=False), mapping=mapping),
        profile(jsonl(tmp_path, conversations), Depth(strict=False)),
        profile(jsonl(tmp_path, greetings)),
    ]
    approved([[one.objectives, one.measures] for one in found])


def test_memory_stays_flat_where_rows_are_many(tmp_path, monkeypatch, approved):
    """Beyond the rows that are kept for comparison the rest is compared with those; that is said."""
    monkeypatch.setattr("advisor.data.checks.repeats.COMPARED_ROWS", 50)
    approved(findings(jsonl(tmp_path, [*pairs(100), pairs(1)[0]])))


def test_documents_that_are_not_read_are_named_with_a_way_to_their_text(tmp_path, approved):
    """A PDF, a table or an image is counted and said, with the way to its text."""
    for number in range(6):
        (tmp_path / f"{number}.md").write_text(f"# Title {number}\n\n" + "a sentence. " * 50)
    (tmp_path / "alone").mkdir()
    listed = ("more.pdf", "b.docx", "c.odt", "d.xlsx", "e.png", "f.JPG", "script.py", "alone/1.pdf")
    for name in listed:
        (tmp_path / name).write_bytes(b"%PDF-1.4")
    with pytest.raises(InputError, match="pdftotext"):
        profile(tmp_path / "alone")
    (tmp_path / "alone" / "1.pdf").unlink()
    approved(profile(tmp_path).findings)


@pytest.mark.parametrize(
    ("text", "script"),
    [
        ("Hello", "Latin"), ("Größe", "Latin"), ("Привет, мир", "Cyrillic"), ("Καλημέρα", "Greek"),
        ("你好,世界", "Han"), ("東京へようこそ", "Japanese"), ("안녕하세요", "Hangul"),
        ("مرحبا", "Arabic"), ("שלום", "Hebrew"), ("नमस्ते", "Devanagari"), ("สวัสดี", "Thai"),
        ("12 + 30 = 42", "none"), ("🙂🙂", "none"), ("Das Wort «мир» ist Russisch", "Latin"),
    ],
)  # fmt: skip
def test_script_of_a_text(text, script):
    """Most letters decide."""
    assert script_of(text) == script


def test_every_objective_has_an_amount_with_a_source():
    """Each objective has rising amounts and steps, with sources that exist."""
    assert set(data_requirements()) == {*objectives(), "classification"}
    for amount in data_requirements().values():
        assert 0 < amount.too_few <= amount.usual[0] < amount.usual[1]
        assert amount.sources
        assert all(source.title for source in amount.sources)
    known = set(read_yaml(rules_dir() / "sources.yaml").data["sources"])
    for one in methods().objectives.values():
        cited = {*one.steps["sources"], *one.steps.get("classes", {}).get("sources", ())}
        assert cited <= known | set(one.sources), one.id


def test_kinds_and_objectives_agree_with_the_rules():
    """What a kind can train is what the objectives' own files say they train on."""
    entries = [read_yaml(path).data for path in (rules_dir() / "objectives").glob("*.yaml")]
    assert len(entries) == len(objectives())
    for kind in DATA_KINDS:
        stated = {entry["id"] for entry in entries if kind in entry["trains_on"]}
        assert stated
        assert set(trainable_on(kind)) == stated
    assert {kind for entry in entries for kind in entry["trains_on"]} <= set(DATA_KINDS)
    assert set(DATA_KINDS) == set(load_facts()["data_kind"].values) - {"none"}


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (10, "too_few"), (49, "too_few"), (50, "thin"), (499, "thin"), (500, "usual"),
        (10_000, "usual"), (10_001, "plenty"), (None, "unknown"),
    ],
)  # fmt: skip
def test_rows_are_judged_against_the_range(rows, expected, approved):
    """Below 50 examples is documented to fail, 500 to 10,000 is usual (rules/data/amounts.yaml)."""
    assert verdict(rows, data_requirements()["sft"]) == expected
    profile = DataProfile(
        path="a",
        kind="paired",
        format="text",
        mapping={},
        rows=rows,
        tokens=None,
        objectives=("sft",),
    )
    approved([*map(in_words, found := compare_amounts(profile)), *found])


def test_text_is_counted_in_tokens(approved):
    """Amounts are tokens for continued pre-training, else rows; known shortages are in words."""
    sizes = dict.fromkeys(("mean", "p50", "p90", "p95", "p99", "longest"), 1)
    tokens = TokenStats(total=200_000_000, **sizes, counted_by="words")
    profile = DataProfile(
        path="a", kind="raw_text", format="text", mapping={}, rows=7, tokens=tokens,
        objectives=("cpt",),
    )  # fmt: skip
    row = compare_amounts(profile)[0]
    few, unknown = (shortages(rows=rows, tokens=None) for rows in (300, None))
    approved([row, in_words(row), few, unknown])


def row_of(request_tokens: int, answer_tokens: int) -> dict[str, object]:
    """A row of that many tokens, at four characters each."""
    return {"question": "q" * 4 * request_tokens, "answer": "a" * 4 * answer_tokens}


def test_each_length_says_what_it_cuts_loses_and_leaves_empty(tmp_path, approved):
    """Rows of 100, 200 and 400 tokens against 128, 256 and 512, counted by hand."""
    # 72 + 272 of 700 tokens stand behind 128; the request of the second row alone fills it.
    # 700 tokens in three sequences of 512; laid end to end they need two.
    rows = [row_of(10, 90), row_of(150, 50), row_of(100, 300)]
    found = (profile(jsonl(tmp_path, one)) for one in (rows, [{"text": "x" * 4 * 300}]))
    approved([one.measures["sequence_lengths"] for one in found])


def test_the_longest_row_is_counted_as_a_trainer_reads_it(tmp_path, approved):
    """The longer answer of a preference must fit, both are read; a sample keeps the longest row."""
    row = {"prompt": "p" * 40, "chosen": "c" * 80, "rejected": "r" * 120}
    judged = profile(jsonl(tmp_path, [row])).tokens
    rows = [*([row_of(5, 5)] * 2999), {"question": "w " * 5000, "answer": "x"}]
    sampled = profile(jsonl(tmp_path, rows), count_tokens=lambda text: len(text.split())).tokens
    approved([judged.longest, judged.total, sampled.longest])


def suggested(path):
    return check_data(str(path))[1]["suggested"]


@pytest.mark.parametrize(
    "rows",
    [
        [row_of(10, 20), row_of(10, 700)] * 300,
        [row_of(10, 20 + number % 200) for number in range(2000)],
        [row_of(20, 300 + number % 3) for number in range(400)],
        [row_of(10, 20)] * 399 + [row_of(10, 9000)],
        [row_of(10, 20 + number % 3) for number in range(40)],
    ],
)
def test_length_and_packing_are_the_plans_with_the_same_reasons(tmp_path, rows):
    """The page and the plan decide them alike, whatever the rows, here sft+lora on one GPU."""
    path, found = jsonl(tmp_path, rows), parse_composition("sft+lora")
    known = {"task": "other", "model": "Qwen/Qwen3-8B", "gpu": "A100 80GB"}
    answers = {key: Answer(value=value, origin="flag") for key, value in known.items()}
    stated = situation_of(AnswerSet(known=answers), probed=UNKNOWN_MACHINE)
    situation = replace(stated, data=profile(path))
    case = StageCase(load_rules(), situation, situation_facts(situation), found, found.chain[-1])
    page, plan = suggested(path), fit_stage(case).reasons
    assert (page["seq_len"], page["packing"]) == (plan["seq_len"].value, plan["packing"].value)
    assert page["because"] == plan["seq_len"].because
    assert plan["packing"].because.startswith(page["packing_because"])


SORTED = [{"text": f"Message {n} " + "word " * (n % 20), "label": "ab"[n % 2]} for n in range(300)]


@pytest.mark.parametrize(
    ("rows", "packing"),
    [
        # One outlier does not set the length: nearly all rows fit.
        ([row_of(10, 200)] * 399 + [row_of(10, 20_000)], True),
        ([row_of(10, 200)] * 59 + [row_of(10, 20_000)], True),
        # One long document asks for no long sequence.
        ([{"text": "a word " * 80}] * 99 + [{"text": "a word " * 9000}], True),
        # A model that sorts packs no rows, and no trainer of pairs packs them.
        (SORTED, False),
        ([{"prompt": str(n), "chosen": "b " * 20, "rejected": "c " * 20} for n in range(60)], False),
    ],
)  # fmt: skip
def test_length_and_packing_are_suggested_with_their_reasons(tmp_path, rows, packing, approved):
    """What nearly all rows need, and what becomes of the others."""
    approved(found := suggested(jsonl(tmp_path, rows)))
    assert found["packing"] is packing


def test_a_sample_says_that_it_is_one(tmp_path, approved):
    """Advice measures the first rows of a large file, the check all of it, and both say so."""
    path = jsonl(tmp_path, [row_of(10, 900)] * 3000 + [row_of(10, 950)])
    approved([sequence_length(profile(path), None).because, suggested(path)["because"]])


ROWS = "".join(json.dumps(row) + "\n" for row in pairs(60))


@pytest.fixture
def check(call):
    """Run `advise check ...` on a.jsonl with a content, in a folder of its own."""

    def run(content, *arguments):
        Path("a.jsonl").write_text(content)
        return call("check", "a.jsonl", *arguments)

    return run


GUESSED = "".join(
    json.dumps({"Frage": asked, "Unsere Antwort": told}) + "\n"
    for asked, told in [("Wie hoch ist er?", "Dreissig Meter.")] * 3 + [("Wie alt ist er?", "Alt.")]
)
CHECKS = {  # content and flags; exit code
    # No registration, no flag: the format is recognised and shown.
    "a path is enough": (ROWS, (), 0),
    # A file that is not understood is an error with all a person needs.
    "unknown columns": ('{"left": "The tower is high.", "right": "It has thirty metres."}\n', (), 2),
    # Columns in another language are read, with a warning that says how to say otherwise.
    "a clear guess": (GUESSED, (), 0),
    # Both spellings of --map are read.
    "one --map": ('{"Frage": "F", "A": "A"}\n', ("--map", "question=Frage", "answer=A"), 0),
    "two --map": ('{"Frage": "F", "A": "A"}\n', ("--map", "question=Frage", "--map", "answer=A"), 0),
    "thirty faults": ("{oops\n" * 30, (), 2),
    "--fix": (ROWS, ("--fix", "b.jsonl"), 2),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_checked_is_said_with_the_next_step(check, name, approved):
    """On standard output where it is the page, on standard error where it is refused."""
    content, flags, expected = CHECKS[name]
    code, out, err = check(content, *flags)
    assert code == expected
    approved([out.splitlines(), err.splitlines()])
    assert not Path("b.jsonl").exists()


def test_json_is_one_document(check, approved):
    """Standard output is the document alone, with rows for findings, also if all is blocked."""
    found = [check(ROWS, "--json"), check(ROWS + "{oops\n", "--json")]
    Path("b.jsonl").write_text(ROWS.splitlines()[0] + "\n")
    long = json.dumps({"question": "Long?", "answer": "very " * 400})
    found += [check(f"{ROWS}{long}\n", "--seq-len", "128", "--eval", "b.jsonl", "--json")]
    approved([[code, json.loads(out), err.splitlines()] for code, out, err in found])
