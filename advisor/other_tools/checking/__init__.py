"""What `advise check` says of a configuration."""
