"""Parts that every system shares. A module may import modules below it, never a system by name."""
