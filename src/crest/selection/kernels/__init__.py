"""Fast twins of plain code, and the one place that chooses between them."""
