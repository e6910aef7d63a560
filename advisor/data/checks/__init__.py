"""What is looked for in the rows of data: one module each."""
