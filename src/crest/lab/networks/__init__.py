"""Networks by name, for images and for text."""
