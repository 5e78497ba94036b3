"""The making of the package's model: its data, its training, its examination. Not installed with the package."""
