"""What is done with results: chat, merge, show a row, fetch the demo model."""
