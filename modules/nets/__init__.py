"""What networks are made of. Nothing here knows a system by name."""
