"""Sparse autoencoders as transformers models."""
