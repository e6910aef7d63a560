"""Knowledge as data: the values, YAML -> Ruleset (load.py), facts -> findings (judge.py)."""
