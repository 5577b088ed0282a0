"""Functional token routing imaging: maps of prompts by class, and the ranking of experts they give."""
