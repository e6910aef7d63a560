"""What a stage keeps: checkpoints, the best weights, records of a run."""
