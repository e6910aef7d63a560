"""What distillation needs: the teacher, the answers it writes, and the distance to it.

teacher.py  the model that is learned from, and the answers that it writes before training
trainer.py  TRL's trainer with the distance between both models' distributions as its loss, on
            answers of the data or its own
"""
