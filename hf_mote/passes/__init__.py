"""What the rows of a forward pass are: which tokens, and what of the text they belong to."""
