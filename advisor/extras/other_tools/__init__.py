"""Files of other training tools: what they say in our words, and a plan in theirs.

`tool` is what rules/tools/TOOL.yaml knows, `mapping` both ways between its keys and a plan's. A
file is read by `file` and judged by `report`, which `page` prints; a plan is written by `files`.
What one tool alone has is in the module with its name.
"""
