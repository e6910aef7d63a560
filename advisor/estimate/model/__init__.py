"""What a model is made of: config.json and the catalogue -> layers, sizes and parameters."""
