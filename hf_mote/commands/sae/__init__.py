"""Commands for sparse autoencoders."""
