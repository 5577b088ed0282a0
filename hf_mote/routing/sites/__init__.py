"""The routers of a live model, found and checked against their rules."""
