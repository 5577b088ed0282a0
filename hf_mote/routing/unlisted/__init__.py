"""Routers that the table lacks, accepted after experiments."""
