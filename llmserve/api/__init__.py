"""The HTTP server: endpoints/ (one file per family) over base/ (what they share) over edge/ (bytes and limits).

Imports go in this direction only.
"""
