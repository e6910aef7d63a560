"""What the files of a model say: its configuration, its weights, where the hub keeps them."""
