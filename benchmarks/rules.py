"""How fast the shipped rules load and judge."""

import time

from advisor.ruleset.judge import judge
from advisor.ruleset.load import load_rules
from benchmarks.measuring import Row

TITLE = "loading the rules, and situations judged a second (all tables)"


def measure() -> list[Row]:
    loads, rates = [], []
    for _ in range(5):
        load_rules.cache_clear()
        start = time.perf_counter()
        ruleset = load_rules()
        loads.append(time.perf_counter() - start)
        situations = [{"task": task, "budget": budget, "gpus": 1, "open_schemes": "any"} for task in ruleset.facts["task"].values for budget in ruleset.facts["budget"].values]
        start = time.perf_counter()
        for facts in situations * 20:
            for table in ruleset.tables:
                judge(ruleset, table, facts)
        rates.append(len(situations) * 20 / (time.perf_counter() - start))
    return [Row("load every rule file", tuple(loads), "s"), Row("situations judged", tuple(rates), "per second", more_is_better=True)]
