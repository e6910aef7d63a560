"""A fuzzer that knows the structure of what `advise` reads: answers, plans, rules, data, model folders,
records of runs, checkpoints, specs, methods and arguments.
"""
