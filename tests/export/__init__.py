"""Plans and results in other forms."""
