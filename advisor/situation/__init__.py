"""What is known: answers, the model's shape, and the Situation that joins them with machine and
data.
"""
