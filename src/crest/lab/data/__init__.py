"""What is trained on: readers of files, data sets in memory, and their views."""
