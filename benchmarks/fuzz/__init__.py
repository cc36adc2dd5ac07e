"""Broken and hostile inputs for every reader of the product, each read in a forked child with limits.

``python -m benchmarks.fuzz`` prints the table; `kinds.KINDS` lists the readers. Input number n of a kind is always the same.
"""
