"""Measurement models: what a scanner records of an image, and classical ways back. Knows `core` only."""
