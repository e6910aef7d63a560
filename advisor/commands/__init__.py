"""One file per command: options in, exit code out. session.py holds what they share, options.py the
options made from the facts, output.py the printing, training.py and tools.py the child processes.
"""
