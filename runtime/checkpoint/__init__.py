"""Checkpoint bytes: where they come from, how they lie, which tier holds them."""
