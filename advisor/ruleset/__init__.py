"""Knowledge as data: model.py the values, load.py YAML -> Ruleset, judge.py Ruleset x facts ->
findings.
"""
