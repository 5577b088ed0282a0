"""Finding experts."""
