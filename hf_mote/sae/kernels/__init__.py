"""Selection of latents and products with them."""
