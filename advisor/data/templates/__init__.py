"""A model's chat template and tokenizer: what they make of the rows."""
