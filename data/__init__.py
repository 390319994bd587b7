"""Data sets: where they lie, how they are read and checked, and the miniature set. Knows nothing of models."""
