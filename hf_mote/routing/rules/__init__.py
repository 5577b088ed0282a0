"""The rules by which routers choose experts, and who follows which."""
