"""Prompts in, responses out."""
