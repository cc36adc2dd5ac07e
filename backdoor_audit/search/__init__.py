"""Searches for triggers, the references they are compared with, and the index that comes of both."""
