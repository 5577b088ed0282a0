"""HTML pages of what was measured; no arithmetic."""
