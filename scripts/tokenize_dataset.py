# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# ///
"""
The command `hf-igpt tokenize_dataset` as a file.

accelerate launch scripts/tokenize_dataset.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.tokenize_dataset import main


if __name__ == "__main__":
    main()
