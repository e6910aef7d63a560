"""The entry of the stand-in: it knows the objective sft alone."""

from trainers.sft import main

main()
