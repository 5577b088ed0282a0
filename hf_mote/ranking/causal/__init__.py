"""Rankings by cause: what changes when an expert's weight does."""
