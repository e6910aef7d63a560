"""The judge against plain reading: masks, changes of form, and the differences of two rule sets."""

import itertools
import json
import random
import re
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.advice.case import decide
from advisor.advice.linting import compare_answers, lint_rules, refuse_or_warn
from advisor.ground.errors import InputError
from advisor.methods import objectives, schemes, update, updates
from advisor.methods.model import SERVERS
from advisor.ruleset.compare import compare_rules
from advisor.ruleset.facts import UNKNOWN
from advisor.ruleset.judge import CompiledTable, fires, judge
from advisor.ruleset.load import load_rules, only_layer
from advisor.ruleset.model import SHIPPED_LAYERS, Condition
from advisor.ruleset.proof import prove
from tests.conftest import examples
from tests.ruleset.random_rules import (
    KEYS,
    Plain,
    coloured,
    made,
    ruled_out,
    rulesets,
    situations,
    with_rules,
)

RULES = load_rules()
JUDGED = [one.id for one in RULES.tables.values() if not one.per and one.id != "settings"]


def facts_of(table):
    """What the table looks at, each fact known or not."""
    values = {"number": st.one_of(st.integers(0, 10), st.integers(0, 10**6)), "flag": st.booleans()}
    facts = (RULES.facts[name] for name in RULES.tables[table].seen)
    return st.fixed_dictionaries(
        {},
        optional={
            fact.id: values.get(fact.type, st.sampled_from([UNKNOWN, *fact.values]))
            for fact in facts
        },
    )


@examples(8, deadline=200)
@given(st.sampled_from(JUDGED).flatmap(lambda table: st.tuples(st.just(table), facts_of(table))))
def test_masks_agree_with_a_plain_reading(case):
    """The compiled table gives the ranking and the prohibitions of a reading without masks."""
    table, facts = case
    judged, plain = judge(RULES, table, facts), Plain(RULES, facts, table)
    asked = schemes() if table == "rank" else ()
    forbidden = plain.forbidden | {
        scheme for scheme in asked if ruled_out(RULES.rules["allowed"], scheme, facts)
    }
    assert (set(judged.forbidden), [one for one, _ in judged.ranking]) == (
        forbidden,
        [one for one in plain.ranking if one not in forbidden],
    )


def test_no_two_settings_of_one_key_hold_at_once():
    """Every combination of axes, size, data and device gives each key one value from each layer."""
    compiled = CompiledTable(RULES, "settings")
    names = ("objective", "update", "quantization", "params_b", "data_rows")
    always = {"learning_rate", "weights_dtype", "optimizer", "epochs", "effective_batch_size"}
    cells = 0
    for *values, (device, capability) in product(
        RULES.facts["objective"].values,
        updates(),
        ("none", "nf4", "int8"),
        (None, 0.1, 0.7, 4.9, 7.0, 13.0, 32.0, 70.0),
        (None, 10, 999, 1000, 10_000, 50_000, 100_000, 100_001),
        (("cpu", None), ("gpu", 7.5), ("gpu", 8.0), ("gpu", None), ("unknown", None)),
    ):
        facts = dict(zip(names, values, strict=True))
        facts |= {"device": device, "compute_capability": capability}
        firing = compiled.firing(facts)
        fired = [one for i, one in enumerate(compiled.rules) if firing >> i & 1]
        keys = [key for one in fired if one.layer == "base" for key in one.then]
        assert len(keys) == len(set(keys)), (facts, keys)
        assert always <= set(keys), (facts, keys)
        cells += 1
    assert cells == len(objectives()) * len(updates()) * 3 * 8 * 8 * 5 >= 9 * 4 * 3 * 8 * 8 * 5


def answers(ruleset):
    """The judge's answer to every situation."""
    table = CompiledTable(ruleset, "colours")
    return [
        (
            [outcome for outcome, _ in judged.ranking],
            [outcome for outcome, _ in judged.wanted],
            set(judged.forbidden),
            {key: value for key, (value, _) in judged.settings.items()},
            len(judged.warnings),
        )
        for judged in map(table.judge, situations(ruleset))
    ]


@examples(1.2)
@given(rulesets(assume=False))
def test_the_judge_agrees_with_a_plain_reading(ruleset):
    """Masks rank, forbid, set and warn as reading every rule does."""
    table = CompiledTable(ruleset, "colours")
    for facts in situations(ruleset):
        judged, plain = table.judge(facts), Plain(ruleset, facts)
        assert [outcome for outcome, _ in judged.ranking] == plain.ranking
        assert [outcome for outcome, _ in judged.wanted] == plain.wanted
        assert (judged.winner[1] if judged.winner else None) == plain.winner
        assert set(judged.forbidden) == plain.forbidden
        assert set(judged.settings) == set(plain.settings)
        assert all(
            value in plain.settings[key] and rule in plain.setting_rules[key]
            for key, (value, rule) in judged.settings.items()
        )
        assert list(judged.warnings) == [rule for rule in plain.fired if rule.kind == "warn"]


@examples(1.2)
@given(rulesets(assume=False), st.integers(0, 1000))
def test_the_order_of_rules_changes_nothing(ruleset, seed):
    """Shuffled rules answer alike, settings included."""
    rules = ruleset.rules["colours"]
    shuffled = random.Random(seed).sample(rules, len(rules))
    assert answers(with_rules(ruleset, tuple(shuffled))) == answers(ruleset)


@examples(1.2)
@given(rulesets(assume=False), st.integers(0, 1000))
def test_names_of_rules_matter_only_between_equals(ruleset, seed):
    """Where no two rules of one layer and tier can disagree, other names answer alike."""
    seen, apart = set(), []
    for rule in ruleset.rules[
        "colours"
    ]:  # one recommendation a layer and tier, one set rule a layer: no name decides
        place = (rule.kind, rule.layer, rule.tier)
        if rule.kind in ("forbid", "warn") or place not in seen:
            apart.append(rule)
        seen.add(place)
    names = random.Random(seed).sample(range(len(apart)), len(apart))
    renamed = tuple(
        replace(rule, id=f"{rule.layer}/n{name}") for rule, name in zip(apart, names, strict=True)
    )
    assert answers(with_rules(ruleset, renamed)) == answers(with_rules(ruleset, tuple(apart)))


@examples(1.2)
@given(rulesets(assume=False))
def test_a_list_says_what_two_rules_say(ruleset):
    """A rule with a list, split into one rule a value, answers alike."""
    split = []
    for rule in ruleset.rules["colours"]:
        listed = next((one for one in rule.when if len(one.values) > 1), None)
        split += [rule] if listed is None else []
        for i, value in enumerate(sorted(listed.values, key=str) if listed else ()):
            part = replace(listed, values=frozenset([value]), unknown=listed.unknown and i == 0)
            when = tuple(part if condition is listed else condition for condition in rule.when)
            split.append(replace(rule, id=f"{rule.id}.{i}", when=when))
    assert answers(with_rules(ruleset, tuple(split))) == answers(ruleset)


def test_a_later_layer_sets_the_value():
    """Between two set rules the later layer's value stands, in whatever order they are read."""
    one = coloured("base/rank", kind="set", layer="base", then={"rank": 8})
    other = coloured("acme/rank", kind="set", layer="acme", then={"rank": 64})
    for rules in ((one, other), (other, one)):
        assert CompiledTable(made(rules), "colours").judge({}).settings["rank"][0] == 64


def said(table, facts):
    """What a table concludes and sets."""
    judgement = table.judge(facts)
    settings = {key: judgement.settings.get(key, (None,))[0] for key in KEYS}
    return {"": judgement.winner and judgement.winner[0], **settings}


@examples(1.2)
@given(rulesets(assume=False), rulesets(assume=False))
def test_every_difference_is_found_and_true(first, second):
    """No situation that the two judge differently is missed, and each witness shows its change."""
    tables = [CompiledTable(one, "colours") for one in (first, second)]
    differences = [
        one for table in compare_rules(first, second).tables for one in table.differences
    ]
    expected = set()
    for facts in situations(made(first.rules["colours"] + second.rules["colours"])):
        one, other = (said(table, facts) for table in tables)
        expected |= {(key, one[key], other[key]) for key in one if one[key] != other[key]}
    assert {(one.key, one.first, one.second) for one in differences} == expected
    for difference in differences:
        one, other = (said(table, difference.region.facts) for table in tables)
        assert (one[difference.key], other[difference.key]) == (difference.first, difference.second)


def test_a_rule_set_answers_as_itself():
    """Nothing differs, and other names of the same rules are no difference of answers."""
    assert compare_rules(RULES, RULES).is_equal
    renamed = {
        table: tuple(replace(rule, id=f"{rule.id}-x") for rule in listed)
        for table, listed in RULES.rules.items()
    }
    compared = compare_rules(RULES, replace(RULES, rules=renamed))
    assert compared.is_equal
    assert len(compared.added) == len(compared.removed) == sum(map(len, renamed.values()))


def test_examples_show_what_the_rules_answer():
    """Two answers, and no fact that is not needed; of one difference in three."""
    first = only_layer(RULES, "document")
    compared = compare_answers(first, RULES)
    differences = [one for table in compared.comparison.tables for one in table.differences][::3]
    shown = [(one, found) for one in differences if (found := compared.example(one)) is not None]
    assert len(shown) > 16
    for (difference, example), (name, ruleset) in product(
        shown, (("first", first), ("second", RULES))
    ):
        decision = decide(ruleset, example.facts)
        assert str(decision.composition) == getattr(example, name)
        assert decision.steps[difference.table].winner[0] == getattr(difference, name)
    assert sum(example.first != example.second for _, example in shown) > len(shown) // 2


def test_a_threshold_that_moves_is_named():
    """One bound of one rule changes: the region between the two, and the rule by name."""
    moved = RULES.rule("lora/rank-large-data")
    when = tuple(
        replace(one, intervals=(replace(one.intervals[0], low=200_000),))
        if one.fact == "data_rows"
        else one
        for one in moved.when
    )
    listed = tuple(
        replace(rule, when=when) if rule is moved else rule for rule in RULES.rules["settings"]
    )
    compared = compare_rules(RULES, replace(RULES, rules={**RULES.rules, "settings": listed}))
    assert (compared.changed, compared.added, compared.removed) == ((moved.id,), (), ())
    (table,) = compared.tables
    # Another rule sets alpha there.
    assert {(one.key, one.second) for one in table.differences} == {("rank", None)}
    between = "data_rows is over 100,000 and at most 200,000"
    assert all(between in one.region.text for one in table.differences)


FITS = tuple(RULES.facts["fits"].values)
MODULES = {name for name in updates() if update(name).is_module}


def overlay(folder, table, *rules, more=""):
    """The shipped rules with rules of one's own in one table."""
    path = folder / "acme.yaml"
    listed = "".join(f"    - {{id: acme/r{i}, {rule}}}\n" for i, rule in enumerate(rules))
    path.write_text(f"overlay: acme\n{more}tables:\n  {table}:\n{listed}")
    return load_rules(overlays=(path,))


def rule(when, then="", more=""):
    then = f"then: {then}, " if then else ""
    return f"{more}when: {when}, {then}because: Policy 12., sources: [guide]"


def ranked(when, then="{scheme: lora}", more="tier: low, "):
    return "rank", rule(when, then, more)


def set_(when, then="{scheduler: cosine}"):
    return "settings", rule(when, then)


FITS_OF_TWO = ranked(
    "{fits: {lora: [tight, split], qlora: fits}}", "{scheme: full}", "kind: forbid, "
)
# A rule, and fact -> values as the judge sees it.
MEANT = [
    # Several schemes are several conditions, all of which have to hold.
    (FITS_OF_TWO, {"fits_lora": {"tight", "split"}, "fits_qlora": {"fits"}}),
    # The former name, as files of one's own wrote it, still means LoRA.
    (ranked("{fits_lora: tight}", "{scheme: qlora}"), {"fits_lora": {"tight"}}),
    # `update_trains: module` is every update whose file says so, beside what else is named.
    (set_("{update_trains: module}"), {"update": MODULES}),
    (set_("{update_trains: all}"), {"update": set(updates()) - MODULES}),
    (set_("{update_trains: [module, all]}"), {"update": set(updates())}),
    (set_("{update_trains: module, update: [full, lora]}"), {"update": {"lora"}}),
    (set_("{update: [full, lora], update_trains: module}"), {"update": {"lora"}}),
]


@pytest.mark.parametrize(("entry", "expected"), MEANT)
def test_a_condition_about_schemes_or_updates_is_one_about_facts(tmp_path, entry, expected):
    """`fits` is about the schemes that it names, what an update trains stands for the updates."""
    when = overlay(tmp_path, *entry).rule("acme/r0").when
    assert {one.fact: set(one.values) for one in when if not one.unknown} == expected


@pytest.mark.parametrize("scheme", schemes())
@pytest.mark.parametrize("fits", ["[unknown, tight]", "{SCHEME: [unknown, tight]}"])
def test_a_bare_fits_is_about_the_scheme_of_the_rule(tmp_path, scheme, fits):
    """`fits: tight` in a rule for a scheme is the same as naming that scheme."""
    entry = ranked(f"{{fits: {fits.replace('SCHEME', scheme)}}}", f"{{scheme: {scheme}}}")
    (one,) = overlay(tmp_path, *entry).rule("acme/r0").when
    assert (one.fact, set(one.values), one.unknown) == (f"fits_{scheme}", {"tight"}, True)
    assert one.text == f"fits_{scheme} is not known or tight"


@pytest.mark.parametrize(
    ("entry", "facts", "is_out"),
    [
        # All schemes of a map have to fit so.
        (FITS_OF_TWO, {"fits_lora": "tight", "fits_qlora": "fits"}, True),
        (FITS_OF_TWO, {"fits_lora": "fits", "fits_qlora": "fits"}, False),
        (FITS_OF_TWO, {"fits_lora": "tight", "fits_qlora": "too_big"}, False),
        # No server is stated, or one that no method's file names.
        *(
            (
                ("allowed", rule("{loads_there: unknown, scheme: full}")),
                {"serve_with": server},
                server not in SERVERS,
            )
            for server in (None, "other", *SERVERS)
        ),
    ],
)
def test_a_scheme_is_ruled_out_where_all_conditions_hold(tmp_path, entry, facts, is_out):
    """An unknown value is asked for like any other."""
    rules = judge(overlay(tmp_path, *entry), "rank", facts).forbidden.get("full", ())
    assert ("acme/r0" in [rule.id for rule in rules]) == is_out


REFUSED = [
    ranked("{fits: {lroa: tight}}"),
    ranked("{fits: {lora: tigth}}"),
    ranked("{fits: []}"),
    ranked("{fits: {lora: {gte: 1}}}"),
    # A rule that speaks of several schemes has to say whose `fits` it means.
    ranked("{fits: tight}", "{scheme: [full, lora]}", "kind: forbid, "),
    ranked("{fits: tight}", "{say: x}", "kind: warn, "),
    # Conditions that contradict the file of a method.
    set_("{update: lora, update_trains: all}"),
    # A setting of an earlier version is told what it is called.
    set_("{update: lora}", "{effective_batch: 8}"),
    # A rule of `allowed` has no `then` and no tier, and speaks of its own scheme alone.
    ("allowed", rule("{fits: too_big}", "{scheme: full}")),
    ("allowed", rule("{fits: too_big}", "{scheme: full}", "kind: forbid, ")),
    ("allowed", rule("{fits: too_big}", "{scheme: full}", "kind: recommend, tier: low, ")),
    ("allowed", rule("{fits: too_big}", "{say: beware}", "kind: warn, ")),
    ("allowed", rule("{fits: {lora: tight}}")),
    ("allowed", rule("{scheme: lroa}")),
    ("allowed", rule("{budget: low}")),
    ("allowed", rule("{fits: too_big}", more="tier: low, ")),
    # It leaves no way out: named once, not once a scheme.
    ("allowed", rule("{}")),
]


@pytest.mark.parametrize("entry", REFUSED)
def test_a_rule_that_cannot_be_meant_so_is_refused_with_its_place(tmp_path, entry, approved):
    """Once, with file, line, column and the nearest name, or the way to write it."""
    with pytest.raises(InputError) as caught:
        refuse_or_warn(overlay(tmp_path, *entry), SHIPPED_LAYERS)
    (fault,) = caught.value.faults
    assert fault.headline.startswith(f"{tmp_path}/acme.yaml:4:")
    approved(fault)


@pytest.mark.parametrize("fact", ["fits", "update_trains", "loads_there", "scheme"])
def test_what_is_told_of_a_scheme_is_no_input_of_ones_own(tmp_path, fact):
    """A table that is not about schemes cannot look at what is known of one."""
    listed = rule("{task: qa}", "{readiness: train}", "tier: low, ")
    with pytest.raises(InputError, match=rf"'{fact}' cannot be added to a table"):
        overlay(tmp_path, "readiness", listed, more=f"inputs: {{readiness: [{fact}]}}\n")


@pytest.mark.parametrize("server", [*RULES.facts["serve_with"].values, "unknown", None])
@pytest.mark.parametrize("scheme", schemes())
def test_a_scheme_is_ruled_out_where_its_file_names_no_such_server(scheme, server):
    """Out only where the method's file lists others, and one that any file lists is stated."""
    facts = {} if server is None else {"serve_with": server}
    rules = judge(RULES, "rank", facts).forbidden.get(scheme, ())
    serves = update(schemes()[scheme].update).serves
    assert set(SERVERS) < set(RULES.facts["serve_with"].values)
    out = server in SERVERS and server not in serves
    assert ("evidence/not-loaded-there" in [rule.id for rule in rules]) == out


ASKED = {
    "scheme": tuple(schemes()),
    "update_trains": ("module", "all"),
    "loads_there": (True, False),
    "fits": FITS,
    "adapters_per": ("model", "task"),
    "priority": ("cost", "quality", "retain_general_ability"),
}


@st.composite
def allowed_rules(draw):
    """A rule of `allowed` that nobody wrote."""
    names = draw(st.lists(st.sampled_from(sorted(ASKED)), unique=True, min_size=1, max_size=3))
    when = []
    for name in names:
        unknown = draw(st.booleans())
        values = draw(st.frozensets(st.sampled_from(ASKED[name]), min_size=0 if unknown else 1))
        when.append(Condition(fact=name, values=values, unknown=unknown, text=f"{name} ..."))
    made = coloured("acme/r0", "", *when, kind="forbid", layer="evidence")
    return replace(made, table="allowed", then={})


def with_allowed(*rules, ranked=RULES.rules["rank"]):
    return replace(RULES, rules={**RULES.rules, "allowed": rules, "rank": ranked})


SITUATIONS = st.fixed_dictionaries(  # those of the schemes by their own names
    {},
    optional={
        "serve_with": st.sampled_from(list(RULES.facts["serve_with"].values)),
        "adapters_per": st.sampled_from(ASKED["adapters_per"]),
        "priority": st.sampled_from(list(RULES.facts["priority"].values)),
        **{f"fits_{scheme}": st.sampled_from(FITS) for scheme in schemes()},
    },
)


@examples(3)
@given(allowed_rules(), allowed_rules(), st.lists(SITUATIONS, min_size=1, max_size=5))
def test_spread_over_the_schemes_a_rule_says_what_it_says(first, second, cases):
    """What is forbidden is what asking each scheme plainly forbids, whatever the rule."""
    second = replace(second, id="acme/r1")
    ruleset = with_allowed(first, second)
    table = CompiledTable(ruleset, "rank")
    for facts in cases:
        out = {scheme for scheme in schemes() if ruled_out((first, second), scheme, facts)}
        assert set(table.judge(facts).forbidden) == out
        for scheme in schemes():
            alone = ruled_out((first,), scheme, facts)
            assert fires(ruleset, first, {**facts, "scheme": scheme}) == alone


def test_a_rule_that_says_what_others_say_is_reported_once(tmp_path):
    """A rule of `allowed` that rules out nothing of its own is one warning, not one a scheme."""
    found = overlay(
        tmp_path,
        "allowed",
        rule("{fits: [too_big, over_budget]}"),
        rule("{scheme: prefix, update_trains: all}"),
        rule("{loads_there: false, adapters_per: task}"),
    )
    assert prove(found, "allowed").redundant == []
    report = lint_rules(overlays=(tmp_path / "acme.yaml",)).report
    said = [(one.rule, one.severity, one.id) for one in report.findings if "acme" in one.rule]
    assert sorted(one for one in said if one[2] != "decides-no-scenario") == [
        ("acme/r0", "warning", "redundant"),
        ("acme/r1", "error", "unreachable"),
        ("acme/r2", "warning", "redundant"),
    ]
    texts = {one.rule: one.text for one in report.findings if one.id == "redundant"}
    assert {"base/too-big", "base/over-budget"} <= set(re.findall(r"[\w/-]+", texts["acme/r0"]))
    assert texts["acme/r2"].startswith("changes nothing: evidence/not-loaded-there already")


@examples(1)
@given(st.lists(allowed_rules(), min_size=1, max_size=3))
def test_without_what_is_called_redundant_everything_is_ruled_out_as_before(several):
    """The rest rules out the same, and none of it can go; what nothing satisfies is unreachable."""
    several = [replace(one, id=f"acme/r{number}") for number, one in enumerate(several)]
    proof = prove(with_allowed(*several, ranked=()), "rank")
    idle = {found.rule.id for found in proof.redundant}
    dead = {found.id for found in proof.unreachable}
    assert (len(idle), not idle & dead) == (len(proof.redundant), True)
    everywhere = [(scheme, facts) for scheme in schemes() for facts in of_one_scheme(scheme)]
    cases = {
        one.id: {i for i, case in enumerate(everywhere) if ruled_out((one,), *case)}
        for one in several
    }
    assert dead == {name for name, found in cases.items() if not found}
    left = {name: cases[name] for name in cases if name not in idle}
    everything = set().union(*cases.values())
    assert set().union(*left.values()) == everything
    for name in left:
        others = set().union(*(left[other] for other in left if other != name))
        assert (others == everything) == (name in dead)


def of_one_scheme(scheme):
    """Every situation that rules of `allowed` can tell apart, as far as this scheme goes."""
    values = {
        f"fits_{scheme}": (None, *FITS),
        "serve_with": (None, *RULES.facts["serve_with"].values),
        "priority": (None, *ASKED["priority"], "privacy"),
        "adapters_per": ASKED["adapters_per"],
    }
    for combination in itertools.product(*values.values()):
        yield dict(zip(values, combination, strict=True))


def test_a_company_rules_schemes_out_in_either_table(tmp_path, call):
    """`allowed` asks each scheme, `rank` names its own; both give the reason."""
    path = tmp_path / "acme.yaml"
    path.write_text(
        """overlay: acme
sources: {policy: {title: Policy 12}}
tables:
  allowed:
    - {id: acme/no-tight-fit, when: {fits: tight}, because: "Nothing may fill a card to the last.", sources: [policy]}
    - {id: acme/small-bases, when: {scheme: [lora, prefix], priority: [unknown, privacy]}, because: "Our cards hold 4-bit bases alone.", sources: [policy]}
  rank:
    - {id: acme/no-adapter, kind: forbid, when: {}, then: {scheme: adapter}, because: "Nobody here can serve one.", sources: [policy]}
"""
    )
    asked = ["--json", "--task", "qa", "--data-kind", "paired", "--data-rows", "4000"]
    asked += ["--model", "Qwen/Qwen3-1.7B", "--gpu", "RTX 4080"]
    plain, document = (json.loads(call(*asked, *more)[1]) for more in ((), ("--rules", path)))
    out = {
        (one["composition"], reason["rule"])
        for one in document["alternatives"]
        if one["verdict"] == "forbidden"
        for reason in one["because"]
    }
    assert {
        ("sft+full", "acme/no-tight-fit"),
        ("sft+lora", "acme/small-bases"),
        ("sft+prefix", "acme/small-bases"),
        ("sft+adapter", "acme/no-adapter"),
    } <= out
    assert plain["recommendation"]["composition"] == "sft+lora"
    assert document["recommendation"]["composition"] == "sft+qlora"
