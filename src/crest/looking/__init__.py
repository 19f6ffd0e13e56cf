"""Passes of our own over a model, which leave no trace."""
