"""Triggers: what they are, families that are searched, and ways to write them down and to draw them."""
