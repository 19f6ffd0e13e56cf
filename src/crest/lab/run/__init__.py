"""One training run, several of them, and their records."""
