"""Files of other training tools: what they say in our words, and a plan in theirs.

`tool` is what rules/tools/TOOL.yaml knows, `mapping` both ways between its keys and a plan's. A
file is read by `file` over `yaml_text`, Unsloth's by `unsloth_yaml`, Python by `script` over
`python_values` and `notebook` (`read` tells them apart), its data by `data_sets`; `report` judges
it, which `page` prints; `out_of_memory` reads an error text. A plan is written by `files` and its
rows by `rows`.
"""
