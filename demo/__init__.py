"""How the model in the package was made: its data, its training, its examination. Not part of what is installed."""
