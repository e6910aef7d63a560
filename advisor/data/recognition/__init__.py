"""What a data file is: its kind, its format, and which column plays which role."""
