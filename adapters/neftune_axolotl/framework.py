"""Axolotl as the `neftune` command knows it; imports nothing of it."""
