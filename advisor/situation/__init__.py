"""What is known: answers, model shape, and the Situation that joins them with machine and data."""
