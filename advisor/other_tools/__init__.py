"""Files of other training tools: what they say in our words, and a plan in theirs.

`tool` holds what is written of a tool by hand (rules/tools/TOOL.yaml), `keys` what its own classes
say (rules/tools/TOOL/RELEASE.yaml), `mapping` goes both ways between their keys and a plan's.
"""
