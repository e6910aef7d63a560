"""The frame that every recipe trains in: job, settings, model, checkpoints, progress."""
