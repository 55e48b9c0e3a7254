"""Searching for what a model should write: greedily, by beams, by drawing. `lightning_modules.decoding` chooses."""
