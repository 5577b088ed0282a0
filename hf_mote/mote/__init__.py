"""Changing routing: configs and how they are attached."""
