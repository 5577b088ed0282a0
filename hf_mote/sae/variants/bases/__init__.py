"""What architectures of sparse autoencoders share."""
