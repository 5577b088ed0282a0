"""Two classes of prompts compared, in numpy; nothing of models."""
