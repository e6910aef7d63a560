"""Real kills of real `advise run` processes, and real damage to what they left."""
