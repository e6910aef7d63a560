"""Files of other tools, read as the tools read them."""
