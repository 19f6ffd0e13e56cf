"""What is trained: networks by name, for images and for text."""
