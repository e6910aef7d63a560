"""What past runs of a machine teach: their record, and the corrections made of it."""
