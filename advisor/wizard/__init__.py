"""The wizard: walks the questions of rules/facts.yaml for somebody who knows no machine learning.

The only part that prompts.

walk.py decides which question comes next and which ones are left out, asking.py turns one
question into prompts (data_file.py), prompts.py talks to the terminal, saved.py keeps answers
over a Ctrl-C. menu.py closes with the choices: run it or try it, pack it for another machine,
why, another method, or other answers (conversation.py).
"""
