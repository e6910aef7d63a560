"""Makes objective dpo known; the stand-in trains it as it does sft."""
