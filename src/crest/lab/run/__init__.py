"""What is done: one training run, several of them, and their records."""
