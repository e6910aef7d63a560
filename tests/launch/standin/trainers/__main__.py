"""The entry of the stand-in: it knows the objectives sft and dpo."""

from trainers.sft import main

main()
