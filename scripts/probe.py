# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# ///
"""
The command `hf-igpt probe` as a file.

accelerate launch scripts/probe.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.probe import main


if __name__ == "__main__":
    main()
