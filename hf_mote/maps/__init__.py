"""Activation maps: the data that recording hands on."""
