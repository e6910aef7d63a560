"""What is known of other tools: their keys, their values, and the way to a plan and back."""
