"""How fast the shipped rules load, judge and are proved."""

import time
from itertools import product

from advisor.advice.linting import lint_rules
from advisor.ruleset.judge import judge
from advisor.ruleset.load import load_rules
from advisor.ruleset.proof import prove
from benchmarks.measuring import Row

TITLE = "loading the rules, situations judged a second (all tables), and the proof"


def measure() -> list[Row]:
    loads, proofs, lints, rates = [], [], [], []
    for _ in range(5):
        load_rules.cache_clear()
        start = time.perf_counter()
        ruleset = load_rules()
        loads.append(time.perf_counter() - start)
        start = time.perf_counter()
        for table in ruleset.tables:
            prove(ruleset, table)
        proofs.append(time.perf_counter() - start)
        start = time.perf_counter()
        lint_rules()
        lints.append(time.perf_counter() - start)
        situations = [
            {"task": task, "budget": budget, "gpus": 1, "candidate_schemes": "any"}
            for task, budget in product(
                ruleset.facts["task"].values, ruleset.facts["budget"].values
            )
        ]
        start = time.perf_counter()
        for facts in situations * 20:
            for table in ruleset.tables:
                judge(ruleset, table, facts)
        rates.append(len(situations) * 20 / (time.perf_counter() - start))
    return [
        Row("load every rule file", tuple(loads), "s"),
        Row("prove all tables", tuple(proofs), "s"),
        Row("lint: proof, examples and scenarios", tuple(lints), "s"),
        Row("situations judged", tuple(rates), "per second", more_is_better=True),
    ]
