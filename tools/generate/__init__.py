"""What makes pages and pictures for people, out of the loaded rules and the published runs.

`python -m tools.generate` writes them. The JSON Schemas are made by advisor/schema/.
"""
