"""A fuzzer that knows the structure of every kind of file and argument that `advise` reads."""
