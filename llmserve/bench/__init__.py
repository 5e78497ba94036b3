"""Measurements of the product through its own front doors: the engine alone, and a server under clients.

Nothing here is needed to serve, and nothing here needs another runtime: comparisons with peers are in benchmarks/.
"""
