"""Data sets as arrays or texts, and their random views."""
