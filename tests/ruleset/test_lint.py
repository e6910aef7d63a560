"""`advise rules lint`: what it proves, against an enumeration of small rule sets, and what it says."""

import datetime
import itertools
import json
import random
import time
from functools import cache
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.advice import linting
from advisor.advice.case import Case
from advisor.advice.facts import situation_facts
from advisor.advice.linting import LintedRules, lint_rules, refuse_or_warn
from advisor.ground.resources import rules_dir
from advisor.ground.types import Answer, AnswerSet, Gpu, Hardware
from advisor.ground.yaml_files import parse_yaml, read_shipped
from advisor.plan.keys import setting_fault, setting_keys
from advisor.render.lint import finding_text, lint_text
from advisor.ruleset.facts import Fact
from advisor.ruleset.lint import REFRESH_FILE, caused_by_user, lint, past_their_date
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import SHIPPED_LAYERS, Assumption, Condition, Interval
from advisor.ruleset.proof import indistinguishable_values, prove
from advisor.ruleset.space import Space, cells_of, in_words
from advisor.situation.models import model_shape, shape_from_size
from advisor.situation.types import Situation
from tests.conftest import examples
from tests.ruleset.random_rules import (
    FACTS,
    KEYS,
    OUTCOMES,
    Plain,
    coloured,
    firing,
    made,
    rulesets,
    situations,
    with_rules,
)
from tests.ruleset.small_rules import small_rules

TODAY = datetime.date(2026, 11, 25)


def report(tmp_path, overlay=None, **changed):
    """The report on the small product, or on what an overlay causes there."""
    root = small_rules(tmp_path, **changed)
    given = {"today": TODAY, "setting_fault": setting_fault, "keys": setting_keys()}
    shipped = lint(load_rules(root=root), **given)
    if overlay is None:
        return shipped
    path = Path("acme.yaml")
    path.write_text(overlay)
    merged = load_rules(overlays=(path,), root=root)
    return caused_by_user(lint(merged, **given), shipped, merged)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def acme(table, *rules, more=""):
    listed = "".join(f"    - {rule}\n" for rule in rules)
    return f"overlay: acme\ntables:\n  {table}:\n{listed}{more}"


def rule(name, when, then, more="tier: strong, "):
    return f"{{id: acme/{name}, {more}when: {when}, then: {then}, because: x, sources: [us]}}"


def example(text):
    return rule("a", "{task: write}", "{way: long}").removesuffix("}") + f", examples: [{text}]}}"


def test_the_small_product_is_proved(tmp_path):
    """No error and no warning; every situation is counted."""
    found = report(tmp_path)
    assert found.findings == ()
    # task 3 x budget 3 x rows (under, at, over 1000, unknown) 4; way 2 x fits 3 x fits 3; update 2
    # x rows 4
    assert [proof.cells for proof in found.proofs] == [36, 18, 8]


FINDINGS = {
    "gap": acme("way", rule("no", "{task: write}", "{way: [long, short]}", "kind: forbid, ")),
    "gap by disabling": "overlay: acme\ndisable:\n  - {rule: base/long, because: we never go far}\n",
    "no way out": acme("size", rule("no", "{way: short}", "{size: [big, small]}", "kind: forbid, ")),
    "conflict": acme(
            "way",
            rule("a", "{task: write}", "{way: long}"),
            rule("b", "{rows: {gte: 5, lt: 9}}", "{way: short}"),
        ),
    "contradictory setting": acme(
            "settings",
            rule("a", "{update: lora}", "{rank: 8}", ""),
            rule("b", "{rows: {gte: 5}}", "{rank: 9}", ""),
        ),
    "unreachable": acme("way", rule("a", "{rows: {gt: 5, lt: 6}}", "{way: long}")),
    "unreachable by an assumption": acme("size", rule("a", "{fits_big: fits, fits_small: too_big}", "{size: big}")),
    "unknown and never so": acme("way", rule("a", "{task: unknown}", "{way: long}")),
    "never wins": acme(
            "way",
            rule("a", "{task: [write, sort]}", "{way: long}"),
            rule("b", "{task: write}", "{way: short}", "tier: usual, "),
        ),
    "redundant": acme(
            "way",
            rule("a", "{task: [write, sort]}", "{way: long}"),
            rule("b", "{task: sort}", "{way: long}"),
        ),
    "an example that fails": acme("way", example("{given: {task: sort}, fires: true}")),
    "an example that fires": acme("way", example("{given: {task: write}, fires: false}")),
    "an example beside the table": acme("way", example("{given: {task: write, update: lora}, fires: true}")),
    "a review that is due": acme(
            "way",
            rule("a", "{task: write}", "{way: long}", "tier: strong, review_by: 2026-11-24, "),
        ),
    "an expired rule": acme("way", rule("a", "{task: write}", "{way: long}", "tier: strong, status: expired, ")),
    "a draft": acme("way", rule("a", "{task: write}", "{way: long}", "tier: strong, status: draft, ")),
    "a long reason": acme(
            "way",
            rule("a", "{task: write}", "{way: long}").replace(
                "because: x", f"because: {'long ' * 40}"
            ),
        ),
    "a setting nobody knows": acme("settings", rule("a", "{update: lora}", "{rnak: 8}", "")),
    "a setting of the wrong type": acme("settings", rule("a", "{update: lora}", "{learning_rate: fast}", "")),
    "a switched-off check": "overlay: acme\ndisable:\n  - {rule: base/big-too-big, because: we know better}\n",
    "a shipped rule without effect": acme("way", rule("a", "{budget: low}", "{way: long}")),
}  # fmt: skip


@pytest.mark.parametrize("name", FINDINGS)
def test_a_finding_has_its_words_and_its_place(tmp_path, name, approved):
    """What is wrong, where to the column, the line with a caret, and the next step."""
    found = report(tmp_path, FINDINGS[name]).findings
    approved([finding_text(finding).splitlines() for finding in found])


SHIPPED = {
    "masked": {"evidence_rows": "version: 1\ntables:\n  way:\n    - {id: evidence/all, tier: usual, when: {}, then: {way: long}, because: x, sources: [us]}\n    - {id: evidence/b, tier: rare, when: {task: sort}, then: {way: short}, because: x, sources: [us]}\n"},
    "an input that nobody reads": {"evidence_rows": "version: 1\ntables: {}\n"},
    "a setting without effect": {
        "document_guide": "version: 1\ntables:\n  settings:\n    - {id: document/rank, when: {update: lora, rows: {gte: 5}}, then: {rank: 4}, because: x, sources: [us]}\n",
        "evidence_rows": "version: 1\ntables:\n  settings:\n    - {id: evidence/rank, when: {}, then: {rank: 2}, because: x, sources: [us]}\n",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rules_are_held_to_more(tmp_path, name, approved):
    """A rule that never wins, or an outcome that nothing leads to, is an error there."""
    found = report(tmp_path, **SHIPPED[name]).findings
    approved([(finding.id, finding.rule, finding_text(finding)) for finding in found])


def test_too_many_cases_are_refused_at_the_files_own_rule(tmp_path):
    """A file whose thresholds multiply is told so instead of being proved for minutes."""
    names = [f"s{i}" for i in range(12)]
    fact = "{type: flag, origin: asked, signal: true, ask: Is it so?}"
    facts = "".join(f"  {name}: {fact}\n" for name in names)
    inputs = f"inputs: {{size: [{', '.join(names)}]}}\n"
    rules = [
        rule(f"{name}{size}{number}", f"{{{name}: {value}}}", then, more)
        for name, (value, size) in product(names, (("true", "small"), ("false", "big")))
        for number, (then, more) in enumerate(
            (("{say: x}", "kind: warn, "), (f"{{size: {size}}}", "tier: usual, "))
        )
    ]
    found = report(tmp_path, acme("size", *rules, more=f"facts:\n{facts}{inputs}")).findings
    assert [finding.at for finding in found if finding.id == "too-many-cases"] == ["acme.yaml:4:12"]


def test_the_last_line_counts_what_was_proved(approved, tmp_path):
    """Tables, rules, situations, sets, examples, time, and the spread over tiers."""
    linted = LintedRules(
        report=report(tmp_path), layers=SHIPPED_LAYERS, duration_s=0.0123, scenarios=2
    )
    approved(lint_text(linted))


NO_WAY_OUT = (
    "{id: acme/no, kind: forbid, when: {}, then: {scheme: [full, lora, qlora, adapter, prefix]},"
    " because: x, sources: [guide]}"
)


@pytest.mark.parametrize("layers", [SHIPPED_LAYERS, ("document",)])
def test_the_shipped_rules_have_no_error_and_are_proved_quickly(layers):
    """`advise rules lint`: exit 0, a second or two of computing; so is the guide alone."""
    began_s, found = time.process_time(), lint_rules(layers)
    assert found.exit_code == 0, lint_text(found)
    if "evidence" in layers:
        assert time.process_time() - began_s < 5
        assert found.report.rules > 150
        assert found.report.examples > 100


def test_a_file_with_errors_is_reported_as_json_and_decides_nothing(approved, tmp_path, call):
    """Every finding has its place, beside what was proved; advice is refused with that place."""
    path = tmp_path / "acme.yaml"
    path.write_text(acme("rank", NO_WAY_OUT))
    code, out, _ = call("rules", "lint", "--json", "--rules", path)
    document = json.loads(out)
    errors = [finding for finding in document["findings"] if finding["severity"] == "error"]
    assert {table["id"] for table in document["tables"]} == set(load_rules().tables)
    refused, _, said = call("--json", "--task", "qa", "--gpu", "unknown", "--rules", path)
    approved([code, errors, document["counts"]["error"], refused, said])


def test_warnings_about_a_file_are_said_once(tmp_path):
    """An unused rule is told the first time only; shipped rules are not proved at every start."""
    path = tmp_path / "acme.yaml"
    say = "{id: acme/x, kind: warn, when: {}, then: {say: hello}, because: x, sources: [guide]"
    path.write_text(acme("rank", f"{say}, status: expired}}"))
    ruleset = load_rules(overlays=(path,))
    (warning,) = refuse_or_warn(ruleset, SHIPPED_LAYERS)
    assert warning.partition(": ")[2] == "acme/x is expired, so it is not used"
    assert refuse_or_warn(ruleset, SHIPPED_LAYERS) == ()
    assert refuse_or_warn(load_rules(), SHIPPED_LAYERS) == ()


CATALOGUES = read_shipped(rules_dir() / "refresh.yaml", shape=REFRESH_FILE).data["catalogues"]
PRICES = {"files": ["prices/*.yaml"], "days": 100, "how": "read it again"}
DATED = """\
compiled: "2026-11-01"
providers:
  a: {date: "2026-08-01", dates: {x: "2026-10-01"}}
  b: {date: "2026-09-01"}
"""
REVIEW = 'review_by: "2026-11-01"\n'
SOURCES = 'a: {checked: "2020-01-01", kind: paper}\nb: {checked: "2020-01-01", kind: vendor}\n'


def past(text, day, **more):
    """What is found in a file of prices on a day."""
    files = [("prices/a.yaml", parse_yaml(text.encode(), name="a.yaml"))]
    return list(past_their_date({"prices": {**PRICES, **more}}, files, day))


DATES = {  # a file of prices, a day, and what else holds of the catalogue
    # From the day after the span on, once a file with the oldest place.
    "in time": (DATED, "2026-11-09"),
    "a day late": (DATED, "2026-11-10"),
    "a year late": (DATED, "2027-11-10"),
    # `review_by` is watched in catalogues as it is in rules.
    "on the day": (REVIEW, "2026-11-01"),
    "after the day": (REVIEW, "2026-11-02"),
    # A paper stays as it was read.
    "no paper": (SOURCES, "2026-11-02", {"but_not": ["paper"]}),
}


@pytest.mark.parametrize("case", DATES)
def test_a_date_is_told_from_the_day_on_that_it_is_too_old(approved, case):
    """With the place of the oldest, and how many dates of the file are too old."""
    text, day, *more = DATES[case]
    found = past(text, datetime.date.fromisoformat(day), **dict(*more))
    approved([f"{finding.at}: {finding.id}: {finding.text}" for finding in found])


def test_a_later_day_never_finds_less():
    """Whatever is due stays due until somebody sets a new date."""
    rng, start = random.Random(7), datetime.date(2026, 1, 1)
    for _ in range(200):
        days = [start + datetime.timedelta(days=rng.randrange(600)) for _ in range(5)]
        text = "".join(f'p{i}: {{date: "{day}"}}\n' for i, day in enumerate(days))
        first = start + datetime.timedelta(days=rng.randrange(900))
        before = past(text, first)
        assert bool(before) == any((first - day).days > PRICES["days"] for day in days)
        later = first + datetime.timedelta(days=rng.randrange(1, 300))
        assert len(past(text, later)) >= len(before)


@pytest.mark.parametrize("name", CATALOGUES)
def test_every_catalogue_is_dated(name):
    """Each pattern names files, and in some of them is a date: ten years on all are warned of."""
    found = [list(rules_dir().glob(pattern)) for pattern in CATALOGUES[name]["files"]]
    assert all(found)
    files = {
        path.relative_to(rules_dir()).as_posix(): read_shipped(path)
        for paths in found
        for path in paths
    }
    assert list(past_their_date({name: CATALOGUES[name]}, files.items(), datetime.date(2036, 1, 1)))


def test_the_linter_tells_what_is_past_its_date(monkeypatch):
    """`advise rules lint` says so for the shipped files, as a warning that fails nothing."""
    monkeypatch.setattr(linting, "_today", lambda: datetime.date(2036, 1, 1))
    told = [one for one in linting.lint_rules().report.findings if one.id == "past-its-date"]
    assert {finding.about[0] for finding in told} == set(CATALOGUES)
    assert {finding.severity for finding in told} == {"warning"}
    assert all(finding.at.startswith("rules/") and finding.hint for finding in told)


RULES = load_rules()
GIB = 2**30


@examples(1.2)
@given(rulesets())
def test_the_sets_of_firing_rules_are_exactly_those_that_occur(ruleset):
    """All are found, none that cannot, and each witness leads to its set."""
    rules = ruleset.rules["colours"]
    space = Space(ruleset, rules)
    found = space.sets()

    def fired(facts):
        firing_now = firing(ruleset, facts)
        return sum(1 << i for i, rule in enumerate(rules) if rule in firing_now)

    assert set(found) == set(map(fired, situations(ruleset)))
    for state, chain in found.items():
        witness = space.witness(chain).items()
        assert fired({fact: space.cells[fact][index].value for fact, index in witness}) == state


@examples(1.6)
@given(rulesets())
def test_gaps_conflicts_winners_and_contradictions_are_those_of_an_enumeration(ruleset):
    """And rules that cannot fire or never win, and outcomes never reached."""
    proof = prove(ruleset, "colours")
    plain = [Plain(ruleset, facts) for facts in situations(ruleset)]
    rules = ruleset.rules["colours"]
    assert bool(proof.holes) == any(case.winner is None for case in plain)
    assert {(clash.first.id, clash.second.id) for clash in proof.conflicts} == {
        (case.winner.id, other.id) for case in plain for other in case.ties
    }
    fired = {rule.id for case in plain for rule in case.fired}
    assert {rule.id for rule in proof.unreachable} == {rule.id for rule in rules} - fired
    winners = {case.winner.id: case.winner.then["colour"] for case in plain if case.winner}
    twice = {idle.rule.id for idle in proof.redundant if idle.rule.kind == "recommend"}
    # An equal says the same: told as redundant.
    assert {idle.rule.id for idle in proof.never_wins if not idle.key} | (twice - set(winners)) == {
        rule.id for rule in rules if rule.kind == "recommend" and rule.id in fired
    } - set(winners)
    assert set(proof.never_concluded) == set(OUTCOMES) - set(winners.values())
    for key in KEYS:
        setting = [case.setting_rules.get(key, []) for case in plain]
        differing = {
            frozenset((one.id, other.id))
            for several in setting
            for one, other in itertools.combinations(several, 2)
            if one.then[key] != other.then[key]
        }
        found = {
            frozenset((clash.first.id, clash.second.id))
            for clash in proof.contradictions
            if clash.key == key
        }
        assert found <= differing
        assert bool(found) == bool(differing)
        counted = {rule.id for several in setting for rule in several}
        assert {idle.rule.id for idle in proof.never_wins if idle.key == key} == {
            rule.id
            for rule in rules
            if rule.kind == "set" and key in rule.then and rule.id in fired
        } - counted


@examples(1.6)
@given(rulesets())
def test_without_redundant_rules_everything_stays(ruleset):
    """No ranking, no prohibition and no setting changes anywhere."""
    gone = {idle.rule.id for idle in prove(ruleset, "colours").redundant}
    rest = with_rules(
        ruleset, tuple(rule for rule in ruleset.rules["colours"] if rule.id not in gone)
    )
    for facts in situations(ruleset):
        before, after = Plain(ruleset, facts), Plain(rest, facts)
        for name in ("ranking", "wanted", "forbidden"):
            assert getattr(before, name) == getattr(after, name)
        decided = {key: values for key, values in before.settings.items() if len(values) == 1}
        assert decided == {key: after.settings.get(key) for key in decided}


def test_a_rule_that_settles_two_values_below_it_is_not_redundant():
    """Without it two rules of an earlier layer would set a key to two values."""
    settles = coloured("document/r0", kind="set", then={"rate": 2})
    below = coloured("base/r1", kind="set", layer="base", then={"rate": 2, "rank": 1})
    other = coloured("base/r2", kind="set", layer="base", then={"rate": 1})
    redundant = prove(made((settles, below, other)), "colours").redundant
    assert settles not in [idle.rule for idle in redundant]


@examples(1.2)
@given(rulesets(assume=False))
def test_a_gap_is_told_as_generally_as_it_goes(ruleset):
    """Everywhere inside nothing is recommended, and no fact of the box could be left out."""
    deciding = [one for one in ruleset.rules["colours"] if one.kind in ("recommend", "forbid")]
    space = Space(ruleset, deciding)
    cases = [(facts, Plain(ruleset, facts).winner) for facts in situations(ruleset)]
    for hole in prove(ruleset, "colours").holes:

        def winners(left_out="", within=hole.box.within):
            boxed = {fact: held for fact, held in within.items() if fact != left_out}
            return [
                winner
                for facts, winner in cases
                if all(_is_in(space, *one, facts.get(one[0])) for one in boxed.items())
            ]

        assert not any(winners())
        assert all(any(winners(left_out=fact)) for fact in hole.box.within), hole.box.text


def _is_in(space, fact_id, held, value):
    """Whether a value lies in one of these cells of a fact."""
    cells = [space.cells[fact_id][index] for index in held]
    if FACTS[fact_id].type != "number" or value is None:
        return value in [cell.value for cell in cells]
    return any(
        value == cell.low
        if cell.is_point
        else (cell.low is None or value > cell.low) and (cell.high is None or value < cell.high)
        for cell in cells
        if cell.value is not None
    )


def is_(fact, *values, unknown=False):
    return Condition(
        fact=fact, values=frozenset(values), unknown=unknown, text=f"{fact} is {values}"
    )


def over(fact, low):
    return Condition(fact=fact, intervals=(Interval(low=low),), text=f"{fact} at least {low}")


def test_a_gap_in_words_names_only_what_matters():
    """Of six facts the one gap is told by the two that make it."""
    rules = (
        coloured("document/a", "red", is_("task", "a", "b")),
        coloured("document/many", "green", over("rows", 3)),
        coloured("document/x", "red", is_("task", "a"), is_("kind", "x")),
    )
    holes = prove(made(rules), "colours").holes
    assert [hole.box.text for hole in holes] == ["task is c and rows is under 3 or not known"]


def test_what_cannot_occur_is_no_gap():
    """Also where an assumption is tied through a fact that no rule looks at."""
    rules = (coloured("document/a", "red", is_("task", "a", "b")),)
    assert prove(made(rules), "colours").holes
    never_c = (
        Assumption(id="c-means-x", never=(is_("task", "c"), is_("kind", "y", unknown=True))),
        Assumption(id="c-means-not-x", never=(is_("task", "c"), is_("kind", "x"))),
    )
    assert not prove(made(rules, never_c), "colours").holes


def test_a_signal_brings_what_it_implies():
    """Where one signal implies another, the first without the second does not occur."""
    louder = Fact(id="louder", type="flag", origin="asked", signal=True, implies=("stated",))
    alone = coloured("document/a", "red", is_("louder", True), is_("stated", False, unknown=True))
    ruleset = replace(made((alone,)), facts={**FACTS, "louder": louder})
    assert prove(ruleset, "colours").unreachable == [alone]


def test_a_required_or_concluded_fact_is_never_unknown():
    """A rule for an unknown task, or for a step that concluded nothing, can never fire."""
    names = ("task", "earlier", "kind")
    rules = tuple(coloured(f"document/{one}", "red", is_(one, unknown=True)) for one in names)
    found = prove(made(rules), "colours").unreachable
    assert {one.id for one in found} == {"document/task", "document/earlier"}


def test_no_whole_number_lies_between_two_neighbours():
    """While a size of 1.5 exists; and nothing is below the smallest allowed."""
    between = Condition(fact="rows", intervals=(Interval(low=1, low_included=False, high=2),))
    assert [cell.value for cell in cells_of(FACTS["rows"], [between])] == [0, 1, 2, 3, None]
    below = Condition(fact="rows", intervals=(Interval(high=0),))
    assert [cell.value for cell in cells_of(FACTS["rows"], [below])] == [0, 1, None]
    sizes = cells_of(FACTS["size"], [replace(between, fact="size")])
    assert any(cell.value is not None and 1 < cell.value < 2 for cell in sizes)


def test_cells_read_like_sentences():
    """A stretch of numbers is told by its bounds, a whole domain as known."""
    cells = cells_of(FACTS["rows"], [over("rows", 1000), over("rows", 50)])
    words = {
        (0,): "rows is under 50",
        (1, 2): "rows is at least 50 and under 1,000",
        (3, 4): "rows is at least 1,000",
        (0, 5): "rows is under 50 or not known",
        (0, 1, 2, 3, 4): "rows is known",
        (1,): "rows is 50",
    }
    assert {chosen: in_words(FACTS["rows"], cells, list(chosen)) for chosen in words} == words


def test_a_rule_that_wins_only_where_others_are_forbidden_is_alive():
    """The last of a ranking counts as soon as prohibitions can take away what stands above it."""
    above, last = coloured("document/a", "red", tier="high"), coloured("document/b", "green")
    assert [idle.rule for idle in prove(made((above, last)), "colours").never_wins] == [last]
    forbid = coloured("acme/no", "red", over("size", 1), kind="forbid", layer="acme")
    assert not prove(made((above, last, forbid)), "colours").never_wins


def test_values_that_no_rule_tells_apart_are_named():
    """Two values with the same rules everywhere are one question too many."""
    one = coloured("document/a", "red", is_("task", "a"))
    other = coloured("document/b", "red", is_("task", "b", "a"))
    assert indistinguishable_values(made((one,)), "task") == [("b", "c")]
    assert indistinguishable_values(made((one, other)), "task") == []


CHAINS = ("sft", "cpt>sft", "sft>rm>ppo", "dpo", "sft>dpo", "kto", "orpo", "grpo")
REAL = (
    "Qwen/Qwen3-8B", "HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen3-30B-A3B",
    "openai/gpt-oss-20b", "google/gemma-3-4b-it",
)  # fmt: skip


@cache
def shape(name):
    return model_shape(name)[0]


def cards(count, memory, capability, **more):
    gpu = Gpu(name="card", memory_total_bytes=memory, compute_capability=capability, **more)
    return Hardware(kind="cuda", origin="stated", gpus=(gpu,) * count)


STATED = {
    "data_rows": [10, 500, 5000, 50_000, 1_000_000],
    "data_tokens": [10_000, 1_000_000, 100_000_000],
    "budget_usd": [1, 20, 500],
    "budget_hours": [0.5, 5, 100],
}


@st.composite
def estimated(draw):
    """A situation whose model, machine, data and budget are drawn."""
    size = draw(st.one_of(st.floats(0.05, 200), st.sampled_from(REAL)))
    model = (
        shape(size) if isinstance(size, str) else shape_from_size(int(size * 1e9), f"{size:.3g}B")
    )
    optional = {fact: st.sampled_from(values) for fact, values in STATED.items()}
    known = draw(st.fixed_dictionaries({}, optional=optional))
    kind = draw(st.sampled_from(["cuda", "cuda", "cuda", "cpu", "unknown"]))
    memory = int(2 ** draw(st.floats(-1, 8)) * GIB)
    hardware = Hardware(
        kind=kind, origin="stated", ram_total_bytes=memory if kind == "cpu" else None
    )
    if kind == "cuda":
        capability = draw(st.sampled_from([(7, 0), (7, 5), (8, 0), (9, 0), None]))
        bf16 = None if capability is None else capability >= (8, 0)
        hardware = cards(draw(st.sampled_from([1, 1, 2, 4, 8])), memory, capability, bf16=bf16)
    answers = {fact: Answer(value=value, origin="flag") for fact, value in known.items()}
    return Situation(answers=AnswerSet(known=answers), hardware=hardware, model=model)


@examples(5)
@given(estimated(), st.sampled_from(CHAINS))
def test_a_base_in_4_bit_never_needs_more(situation, chain):
    """QLoRA fits where LoRA or full does, unless the base cannot be quantised or is divided."""
    facts = situation_facts(situation)
    fits = Case.build(situation, RULES).coarse_fits(chain)
    again = situation.model.stored is None
    assert again == (situation.model.id != "openai/gpt-oss-20b")
    possible = ("fits", "tight")
    assert not again or fits["qlora"] != "too_big" or not {fits["lora"], fits["full"]} & {*possible}
    facts |= {f"fits_{scheme}": fit for scheme, fit in fits.items()}
    assert not RULES.contradictions(facts), fits


def test_an_assumption_would_be_noticed():
    """The sampled machines include those on which one scheme fits and another does not."""
    hardware, model = cards(1, 12 * GIB, (8, 0)), shape("Qwen/Qwen3-8B")
    small = Situation(answers=AnswerSet(known={}), hardware=hardware, model=model)
    fits = Case.build(small, RULES).coarse_fits("sft")
    assert (fits["lora"], fits["qlora"]) == ("too_big", "fits")
