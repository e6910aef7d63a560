"""Sequence lengths: what one would cut, what the lengths suggest; and `advise check`, which says so."""

import json
from pathlib import Path

import pytest
from msgspec.structs import replace

from advisor.advice.facts import situation_facts
from advisor.advice.search.fit import fit_stage
from advisor.advice.search.rows import sequence_length
from advisor.advice.search.settings import StageCase
from advisor.commands.check import check_data
from advisor.data import profile
from advisor.ground.types import Answer, AnswerSet
from advisor.methods.composition import parse_composition
from advisor.ruleset.load import load_rules
from advisor.situation.build import situation_of
from tests.advice.situations import UNKNOWN_MACHINE
from tests.data.conftest import jsonl, pairs


def pair(request_tokens: int, answer_tokens: int) -> dict[str, object]:
    """A row of that many tokens, at four characters each."""
    return {"question": "q" * 4 * request_tokens, "answer": "a" * 4 * answer_tokens}


def test_each_length_says_what_it_cuts_loses_and_leaves_empty(tmp_path):
    """Rows of 100, 200 and 400 tokens against 128, 256 and 512, counted by hand."""

    def table(rows, *keys):
        measured = profile(jsonl(tmp_path, rows)).measures["sequence_lengths"]
        return {row["seq_len"]: tuple(row[key] for key in keys) for row in measured}

    rows = [pair(10, 90), pair(150, 50), pair(100, 300)]
    lost = table(rows, "rows_over", "tokens_cut_share", "answers_lost")
    assert set(lost) == {128, 256, 512}
    # 72 + 272 of 700 tokens stand behind 128; the request of the second row alone fills it.
    assert lost[128] == (2, round(344 / 700, 4), 1)
    assert lost[256] == (1, round(144 / 700, 4), 0)
    # 700 tokens in three sequences of 512; laid end to end they need two.
    filled = table(rows, "rows_over", "padding", "packed_sequences")
    assert filled[512] == (0, round(1 - 700 / 1536, 3), 2)
    text = [{"text": "x" * 4 * 300}]
    assert table(text, "rows_over", "tokens_cut_share", "packed_sequences")[128] == (1, 0.0, 3)


def test_the_longest_row_is_counted_as_a_trainer_reads_it(tmp_path):
    """Of a preference request and the longer answer have to fit; what a trainer reads is both
    sequences. With a tokenizer and a sample the longest row is still the longest row.
    """
    row = {"prompt": "p" * 40, "chosen": "c" * 80, "rejected": "r" * 120}
    tokens = profile(jsonl(tmp_path, [row])).tokens
    assert (tokens.longest, tokens.total) == (40, 30 + 40)
    rows = [*([pair(5, 5)] * 2999), {"question": "w " * 5000, "answer": "x"}]
    tokens = profile(jsonl(tmp_path, rows), count_tokens=lambda text: len(text.split())).tokens
    assert tokens.longest == 5001


def suggested(path):
    return check_data(str(path))[1]["suggested"]


def planned(path):
    """seq_len and packing of the plan that the same data get: sft+lora on one GPU."""
    found = parse_composition("sft+lora")
    known = {"task": "other", "model": "Qwen/Qwen3-8B", "gpu": "A100 80GB"}
    answers = {key: Answer(value=value, origin="flag") for key, value in known.items()}
    stated = situation_of(AnswerSet(known=answers), probed=UNKNOWN_MACHINE)
    situation = replace(stated, data=profile(path))
    facts = situation_facts(situation)
    return fit_stage(StageCase(load_rules(), situation, facts, found, found.chain[-1])).reasons


@pytest.mark.parametrize(
    "rows",
    [
        [pair(10, 20), pair(10, 700)] * 300,
        [pair(10, 20 + number % 200) for number in range(2000)],
        [pair(20, 300 + number % 3) for number in range(400)],
        [pair(10, 20)] * 399 + [pair(10, 9000)],
        [pair(10, 20 + number % 3) for number in range(40)],
    ],
)
def test_length_and_packing_are_the_plans_with_the_same_reasons(tmp_path, rows):
    """The page and the plan are decided by the same functions, whatever the rows."""
    path = jsonl(tmp_path, rows)
    page, plan = suggested(path), planned(path)
    assert (page["seq_len"], page["packing"]) == (plan["seq_len"].value, plan["packing"].value)
    assert page["because"] == plan["seq_len"].because
    assert plan["packing"].because.startswith(page["packing_because"])


SORTED = [{"text": f"Message {n} " + "word " * (n % 20), "label": "ab"[n % 2]} for n in range(300)]
ROOM, CUT = range(1025), "left out (truncation: truncate cuts them instead)"


@pytest.mark.parametrize(
    ("rows", "lengths", "packing", "because"),
    [
        # One outlier does not set the length: nearly all rows fit.
        ([pair(10, 200)] * 399 + [pair(10, 20_000)], ROOM, True, ["1 of 400 rows are longer", CUT]),
        ([pair(10, 200)] * 59 + [pair(10, 20_000)], ROOM, True, ["1 of 60 rows are longer", CUT]),
        # One long document asks for no long sequence.
        ([{"text": "a word " * 80}] * 99 + [{"text": "a word " * 9000}], [2048], True,
         ["split without loss"]),
        # A model that sorts packs no rows, and no trainer of pairs packs them.
        (SORTED, ROOM, False, ["the longest row"]),
        ([{"prompt": str(n), "chosen": "b " * 20, "rejected": "c " * 20} for n in range(60)], ROOM,
         False, []),
    ],
)  # fmt: skip
def test_length_and_packing_are_suggested_with_their_reasons(
    tmp_path, rows, lengths, packing, because
):
    """What nearly all rows need, and what becomes of the others."""
    found = suggested(jsonl(tmp_path, rows))
    assert found["seq_len"] in lengths
    assert found["packing"] is packing
    assert [words for words in because if words not in found["because"]] == []
    assert (found["objective"] == "classification") == (rows is SORTED)


def test_a_sample_says_that_it_is_one(tmp_path):
    """Advice measures the first rows of a large file, the check all of it, and both say so."""
    path = jsonl(tmp_path, [pair(10, 900)] * 3000 + [pair(10, 950)])
    quick, whole = sequence_length(profile(path), None), suggested(path)
    assert "the longest row of the 2,000 measured" in quick.because
    assert "the longest row (" in whole["because"]


# -------------------------------------------------------------------------- the command


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
STATED = (
    "as stated with --map", "Next: advise --task other --data a.jsonl --map question=Frage answer=A",
)  # fmt: skip
CHECKS = {  # content and flags; exit code; what is said on standard output and error
    # No registration, no flag: the format is recognised and shown.
    "a path is enough": (ROWS, (), 0, (
        "question and answer columns", "A plan for sft with LoRA on one GPU takes"), ()),
    # A file that is not understood is an error with all a person needs.
    "unknown columns": (
        '{"left": "The tower is high.", "right": "It has thirty metres."}\n', (), 2, (), (
        "a.jsonl: no known columns. Columns: left (text), right (text)",
        "nearest: question_answer", "advise check a.jsonl --map question=left answer=right")),
    # Columns in another language are read, with a warning that says how to say otherwise.
    "a clear guess": (GUESSED, (), 0, (
        "guessed from their names", "--map question=Frage 'answer=Unsere Antwort'"), ()),
    # Both spellings of --map are read.
    "one --map": ('{"Frage": "F", "A": "A"}\n', ("--map", "question=Frage", "answer=A"), 0, STATED, ()),
    "two --map": ('{"Frage": "F", "A": "A"}\n', ("--map", "question=Frage", "--map", "answer=A"), 0,
                  STATED, ()),
    "thirty faults": ("{oops\n" * 30, (), 2, (), ("invalid JSON", "10 more")),
    "--fix": (ROWS, ("--fix", "b.jsonl"), 2, (), (
        "--fix: rows are not rewritten mend the rows that the findings name",)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHECKS)
def test_what_is_checked_is_said_with_the_next_step(check, name):
    """On standard output where it is the page, on standard error where it is refused."""
    content, flags, expected, page, error = CHECKS[name]
    code, out, err = check(content, *flags)
    assert code == expected
    for said, parts in ((out, page), (err, error)):
        assert bool(said) == bool(parts)
        assert [part for part in parts if part not in " ".join(said.split())] == []
    assert "Traceback" not in err
    assert err.count("invalid JSON") == (20 if name == "thirty faults" else 0)
    assert not Path("b.jsonl").exists()


def test_json_is_one_document(check):
    """Standard output holds the document alone, also where a fault blocks every objective. --seq-len
    names the rows over it, --eval those that stand in both files.
    """
    code, out, err = check(ROWS, "--json")
    document = json.loads(out)
    assert (code, err, document["schema_version"], document["rows"]) == (0, "", 1, 60)
    assert document["suggested"]["seq_len"] > 0
    code, out, _ = check(ROWS + "{oops\n", "--json")
    document = json.loads(out)
    assert (code, document["kind"], document["objectives"]) == (2, "paired", [])
    assert document["findings"][0]["rows"] == [61]
    Path("b.jsonl").write_text(ROWS.splitlines()[0] + "\n")
    long = json.dumps({"question": "Long?", "answer": "very " * 400})
    _, out, _ = check(f"{ROWS}{long}\n", "--seq-len", "128", "--eval", "b.jsonl", "--json")
    found = {finding["id"]: finding["rows"] for finding in json.loads(out)["findings"]}
    assert found["rows-over-length"] == [61]
    assert found["evaluation-rows-in-training"] == [1]
