"""Endpoints, one file or folder per family, each with a `router`."""
