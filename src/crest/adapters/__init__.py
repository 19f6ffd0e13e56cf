"""Thin bridges to frameworks. Each is imported by itself, and needs its framework installed."""
