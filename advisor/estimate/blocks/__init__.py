"""What the layers of a model hold: a table "operation -> tensors saved for the backward pass".

`operations.py` is the table. `layer.py` and `states.py` write blocks as sequences of its
operations, in the order of their modules in transformers; `styles.py` says how families differ;
`layer.py` puts a layer together and asks the `tape.py` what it keeps and how high memory rises
while it runs backwards; `of_run.py` reads the settings from a run. No factor is fitted: tests hold
the table to traced layers.
"""
