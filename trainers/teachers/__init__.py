"""What distillation needs: the teacher, the answers it writes, and the distance to it.

teacher.py     the model that is learned from, and whether it fits the student
answers.py     answers that the teacher writes before training, kept in the run folder
divergence.py  the distance between two models' distributions, in tiles
trainer.py     TRL's trainer with that distance as its loss, on answers of the data or its own
"""
