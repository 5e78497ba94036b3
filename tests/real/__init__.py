"""Checks with real trained models, which packages on PyPI carry: `make real`."""
