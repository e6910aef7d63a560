"""One optimizer step: losses, precision, optimizers, division over processes, memory."""
