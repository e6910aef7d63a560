"""What is taken elsewhere: a plan or the result of a run in another form, one module per form."""
