"""Rules about schemes: one fact `fits`, what methods' files tell, and the table `allowed`."""

import itertools
import json

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from advisor.advice.linting import lint_rules, refuse_or_warn
from advisor.cli import advise
from advisor.ground.errors import InputError
from advisor.ground.yaml_files import Document, Spot
from advisor.methods import methods, schemes, update, updates
from advisor.methods.model import SERVERS
from advisor.ruleset.judge import CompiledTable, fires, judge
from advisor.ruleset.load import load_rules
from advisor.ruleset.model import SHIPPED_LAYERS, Condition, Rule
from advisor.ruleset.proof import prove
from tests.conftest import examples
from tests.ruleset.random_rules import ruled_out

RULES = load_rules()
FITS = tuple(RULES.facts["fits"].values)
MODULES = {name for name in updates() if update(name).is_module}
OF_SCHEMES = {name: scheme.update for name, scheme in schemes().items()}


def overlay(folder, table, *rules, more="", name="acme.yaml"):
    """The shipped rules with rules of one's own in one table."""
    path = folder / name
    listed = "".join(f"    - {{id: acme/r{i}, {rule}}}\n" for i, rule in enumerate(rules))
    path.write_text(f"overlay: acme\n{more}tables:\n  {table}:\n{listed}")
    return load_rules(overlays=(path,))


def rule(when, then="", more=""):
    then = f"then: {then}, " if then else ""
    return f"{more}when: {when}, {then}because: Policy 12., sources: [guide]"


def assert_located(error, folder):
    """Every fault stands at the first rule of the file."""
    assert all(fault.headline.startswith(f"{folder}/acme.yaml:4:") for fault in error.faults), (
        error.text()
    )


def conditions(ruleset, rule_id="acme/r0"):
    """Fact -> values, of a rule as the judge sees it."""
    return {
        condition.fact: set(condition.values) | ({"unknown"} if condition.unknown else set())
        for condition in ruleset.rule(rule_id).when
    }


# --------------------------------------------------------------------------- fits


@pytest.mark.parametrize("scheme", schemes())
def test_a_bare_fits_is_about_the_scheme_of_the_rule(tmp_path, scheme):
    """`fits: tight` in a rule for a scheme is the same as naming that scheme."""
    for number, fits in enumerate(("[unknown, tight]", f"{{{scheme}: [unknown, tight]}}")):
        listed = rule(f"{{fits: {fits}}}", f"{{scheme: {scheme}}}", "tier: low, ")
        found = overlay(tmp_path, "rank", listed, name=f"{number}.yaml")
        assert conditions(found) == {f"fits_{scheme}": {"unknown", "tight"}}
        assert found.rule("acme/r0").when[0].text == f"fits_{scheme} is not known or tight"


def test_fits_as_a_map_is_about_the_schemes_it_names(tmp_path):
    """Several schemes are several conditions, all of which have to hold."""
    named = "{fits: {lora: [tight, split], qlora: fits}}"
    found = overlay(tmp_path, "rank", rule(named, "{scheme: full}", "kind: forbid, "))
    assert conditions(found) == {"fits_lora": {"tight", "split"}, "fits_qlora": {"fits"}}
    for fits, out in (("tight fits", True), ("fits fits", False), ("tight too_big", False)):
        facts = dict(zip(("fits_lora", "fits_qlora"), fits.split(), strict=True))
        assert ("full" in judge(found, "rank", facts).forbidden) == out


def test_fits_of_no_scheme_is_refused_with_the_way_to_write_it(tmp_path):
    """A rule that speaks of several schemes has to say whose `fits` it means."""
    for then, more in (("{scheme: [full, lora]}", "kind: forbid, "), ("{say: x}", "kind: warn, ")):
        with pytest.raises(InputError) as caught:
            overlay(tmp_path, "rank", rule("{fits: tight}", then, more))
        (fault,) = caught.value.faults
        assert fault.headline.startswith(f"{tmp_path}/acme.yaml:4:")
        assert "'fits' of which scheme?" in fault.headline
        assert fault.allowed == "fits: {lora: tight}"


@pytest.mark.parametrize(
    ("when", "said"),
    [
        ("{fits: {lroa: tight}}", r"unknown scheme 'lroa'[\s\S]*did you mean 'lora'"),
        ("{fits: {lora: tigth}}", r"'fits' cannot be 'tigth'[\s\S]*did you mean 'tight'"),
        ("{fits: []}", "the list of 'fits' is empty"),
        ("{fits: {lora: {gte: 1}}}", "'fits' cannot be a map"),
    ],
)
def test_a_typo_in_fits_is_located(tmp_path, when, said):
    """A scheme or a value that does not exist: file, line, column and the nearest name."""
    with pytest.raises(InputError, match=said) as caught:
        overlay(tmp_path, "rank", rule(when, "{scheme: lora}", "tier: low, "))
    assert_located(caught.value, tmp_path)


def test_fits_of_a_scheme_by_its_former_name_is_read(tmp_path):
    """`fits_lora`, as files of one's own wrote it, still means LoRA."""
    found = overlay(tmp_path, "rank", rule("{fits_lora: tight}", "{scheme: qlora}", "tier: low, "))
    assert conditions(found) == {"fits_lora": {"tight"}}


# --------------------------------------------------------------------------- what files tell


def test_what_an_update_trains_stands_for_the_updates(tmp_path):
    """`update_trains: module` is every update whose file says so, beside what else is named."""
    then = "{scheduler: cosine}"
    for when, expected in (
        ("{update_trains: module}", MODULES),
        ("{update_trains: all}", set(updates()) - MODULES),
        ("{update_trains: [module, all]}", set(updates())),
        ("{update_trains: module, update: [full, lora]}", {"lora"}),
        ("{update: [full, lora], update_trains: module}", {"lora"}),
    ):
        found = overlay(tmp_path, "settings", rule(when, then), name=f"f{abs(hash(when))}.yaml")
        assert conditions(found) == {"update": expected}


def test_a_rule_for_an_update_that_trains_otherwise_is_reported(tmp_path):
    """Conditions that contradict the file of a method can never hold, and the linter says so."""
    listed = rule("{update: lora, update_trains: all}", "{scheduler: cosine}")
    found = overlay(tmp_path, "settings", listed)
    with pytest.raises(InputError, match=r"acme/r0 can never fire"):
        refuse_or_warn(found, SHIPPED_LAYERS)


@pytest.mark.parametrize("fact", ["fits", "update_trains", "loads_there", "scheme"])
def test_what_is_told_of_a_scheme_is_no_input_of_ones_own(tmp_path, fact):
    """A table that is not about schemes cannot look at what is known of one."""
    listed = rule("{task: qa}", "{readiness: train}", "tier: low, ")
    with pytest.raises(InputError, match=rf"'{fact}' cannot be added to a table"):
        overlay(tmp_path, "readiness", listed, more=f"inputs: {{readiness: [{fact}]}}\n")


# --------------------------------------------------------------------------- the table `allowed`


@pytest.mark.parametrize("server", [*RULES.facts["serve_with"].values, "unknown", None])
@pytest.mark.parametrize("scheme", schemes())
def test_a_scheme_is_ruled_out_where_its_file_names_no_such_server(scheme, server):
    """Out only where the method's file lists others, and one that any file lists is stated."""
    facts = {} if server is None else {"serve_with": server}
    rules = judge(RULES, "rank", facts).forbidden.get(scheme, ())
    serves = methods().updates[OF_SCHEMES[scheme]].serves
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
def allowed_rules(draw, number=0):
    """A rule of `allowed` that nobody wrote."""
    names = draw(st.lists(st.sampled_from(sorted(ASKED)), unique=True, min_size=1, max_size=3))
    when = []
    for name in names:
        unknown = draw(st.booleans())
        values = draw(st.frozensets(st.sampled_from(ASKED[name]), min_size=0 if unknown else 1))
        when.append(Condition(fact=name, values=values, unknown=unknown, text=f"{name} ..."))
    return Rule(
        id=f"acme/r{number}",
        table="allowed",
        kind="forbid",
        layer="evidence",
        when=tuple(when),
        then={},
        because="x",
        sources=(),
        spot=Spot(Document(f"acme.yaml:{number + 1}:1", lambda: None)),
    )


def with_allowed(*rules, ranked=RULES.rules["rank"]):
    return replace(RULES, rules={**RULES.rules, "allowed": rules, "rank": ranked})


def situations():
    """Facts of a situation, those of the schemes by their own names."""
    return st.fixed_dictionaries(
        {},
        optional={
            "serve_with": st.sampled_from(list(RULES.facts["serve_with"].values)),
            "adapters_per": st.sampled_from(ASKED["adapters_per"]),
            "priority": st.sampled_from(list(RULES.facts["priority"].values)),
            **{f"fits_{scheme}": st.sampled_from(FITS) for scheme in schemes()},
        },
    )


@examples(3)
@given(allowed_rules(0), allowed_rules(1), st.lists(situations(), min_size=1, max_size=5))
def test_spread_over_the_schemes_a_rule_says_what_it_says(first, second, cases):
    """What is forbidden is what asking each scheme plainly forbids, whatever the rule."""
    ruleset = with_allowed(first, second)
    table = CompiledTable(ruleset, "rank")
    for facts in cases:
        out = {scheme for scheme in schemes() if ruled_out((first, second), scheme, facts)}
        assert set(table.judge(facts).forbidden) == out
        for scheme in schemes():
            alone = ruled_out((first,), scheme, facts)
            assert fires(ruleset, first, {**facts, "scheme": scheme}) == alone


@examples(1)
@given(allowed_rules())
def test_a_rule_that_can_rule_out_nothing_is_found(found):
    """The proof calls it unreachable where no scheme in any situation satisfies it."""
    proof = prove(with_allowed(found, ranked=()), "rank")
    some = any(
        ruled_out((found,), scheme, facts)
        for scheme in schemes()
        for facts in of_one_scheme(scheme)
    )
    assert [rule.id for rule in proof.unreachable] == ([] if some else ["acme/r0"])
    assert "acme/r0" not in [idle.rule.id for idle in proof.redundant]


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
    assert "base/too-big" in texts["acme/r0"]
    assert "base/over-budget" in texts["acme/r0"]
    assert texts["acme/r2"].startswith("changes nothing: evidence/not-loaded-there already")


def test_a_rule_that_rules_everything_out_is_named_once(tmp_path):
    """One rule of `allowed` leaves no way out: the error names it once, not once a scheme."""
    with pytest.raises(InputError) as caught:
        refuse_or_warn(overlay(tmp_path, "allowed", rule("{}")), SHIPPED_LAYERS)
    (fault,) = caught.value.faults
    assert "acme/r0 leaves no way out: where always, every scheme is forbidden" in fault.headline
    assert fault.hint == "leave one scheme allowed"


@examples(1)
@given(st.tuples(*(allowed_rules(number) for number in range(3))))
def test_without_what_is_called_redundant_everything_is_ruled_out_as_before(several):
    """The others rule out the same schemes, and no rule is left that could go too."""
    proof = prove(with_allowed(*several, ranked=()), "rank")
    idle = {found.rule.id for found in proof.redundant}
    dead = {found.id for found in proof.unreachable}
    assert len(idle) == len(proof.redundant)
    assert not idle & dead
    everywhere = [(scheme, facts) for scheme in schemes() for facts in of_one_scheme(scheme)]
    cases = {
        one.id: {i for i, case in enumerate(everywhere) if ruled_out((one,), *case)}
        for one in several
    }
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


@pytest.mark.parametrize(
    ("entry", "said"),
    [
        (rule("{fits: too_big}", "{scheme: full}"), "a rule of this table has no `then`"),
        (rule("{fits: too_big}", "{scheme: full}", "kind: forbid, "), "has no `then`"),
        (
            rule("{fits: too_big}", "{scheme: full}", "kind: recommend, tier: low, "),
            r"table 'allowed' rules schemes out\n  kind: forbid",
        ),
        (
            rule("{fits: too_big}", "{say: beware}", "kind: warn, "),
            r"rules schemes out\n.*\n  a warn rule belongs to a table that is not asked for each",
        ),
        (rule("{fits: {lora: tight}}"), "'fits' cannot be a map"),
        (rule("{scheme: lroa}"), r"'scheme' cannot be 'lroa'[\s\S]*did you mean 'lora'"),
        (rule("{budget: low}"), "table 'allowed' does not look at 'budget'"),
        (rule("{fits: too_big}", more="tier: low, "), "a forbid rule has no tier"),
    ],
)
def test_a_rule_of_allowed_only_rules_out(tmp_path, entry, said):
    """It has no `then` and no tier, and speaks of its own scheme alone."""
    with pytest.raises(InputError, match=said) as caught:
        overlay(tmp_path, "allowed", entry)
    assert_located(caught.value, tmp_path)


def test_an_unknown_value_is_asked_for_like_any_other(tmp_path):
    """It holds where no server is stated, or one that no method's file names."""
    found = overlay(tmp_path, "allowed", rule("{loads_there: unknown, scheme: prefix}"))
    for server in (None, "other", *SERVERS):
        rules = judge(found, "rank", {"serve_with": server}).forbidden.get("prefix", ())
        assert ("acme/r0" in [rule.id for rule in rules]) == (server not in SERVERS)


def test_a_former_setting_is_refused_with_the_new_one(tmp_path):
    """`effective_batch` of an earlier version is told what it is called."""
    found = overlay(tmp_path, "settings", rule("{update: lora}", "{effective_batch: 8}"))
    with pytest.raises(InputError, match=r"'effective_batch'\n.*'effective_batch_size'"):
        refuse_or_warn(found, SHIPPED_LAYERS)


# --------------------------------------------------------------------------- a company's file


def test_a_company_rules_schemes_out_in_either_table(tmp_path, monkeypatch):
    """`allowed` asks each scheme, `rank` names its own; both give the reason."""
    monkeypatch.chdir(tmp_path)
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
    plain = json.loads(CliRunner().invoke(advise, asked).stdout)
    done = CliRunner().invoke(advise, [*asked, "--rules", str(path)])
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
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
