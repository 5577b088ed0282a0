"""What a response shows: judges turn it into a label."""
