"""Files of other training tools: what they say in our words, and a plan in theirs.

- `tables`: what is known of each tool: the keys of its own classes (rules/tools/TOOL/RELEASE.yaml),
  what is written by hand (rules/tools/TOOL.yaml), and both ways between its keys and a plan's.
- `reading`: a file or script -> the tool's keys and values, with what its parser refuses.
- `data`: the data sets that a file names; one module a tool.
- `checking`: such a file -> a plan, memory, findings, changes: the page of `advise check`.
- `writing`: a plan -> a file of the tool, for `advise export`.
"""
