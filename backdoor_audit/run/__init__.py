"""One audit of one model: what it is about, what was found, what is kept."""
