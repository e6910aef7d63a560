"""The launch file: plan.yaml as a value (model.py), read and checked (read.py), written with its
reasons (write.py).
"""
