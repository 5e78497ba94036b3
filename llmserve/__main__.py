"""The command line's entry point, also as `python -m llmserve`."""

from __future__ import annotations

from .toolchain import without_torch


def main() -> None:
    """Run the command line in a process of its own, which this must be the first to set up."""
    without_torch()
    from .cli import main as run

    run()


if __name__ == "__main__":
    main()
