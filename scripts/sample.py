# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# ///
"""
The command `hf-igpt sample` as a file.

accelerate launch scripts/sample.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.sample import main


if __name__ == "__main__":
    main()
