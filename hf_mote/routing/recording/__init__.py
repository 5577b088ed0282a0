"""Routing recorded during forward and generate."""
