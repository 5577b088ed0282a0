"""Does a config do what it is meant to?"""
