# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# ///
"""
The command `hf-igpt evaluate` as a file.

accelerate launch scripts/evaluate.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.evaluate import main


if __name__ == "__main__":
    main()
