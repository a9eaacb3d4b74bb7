# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# ///
"""
The command `hf-igpt fit_palette` as a file.

accelerate launch scripts/fit_palette.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.fit_palette import main


if __name__ == "__main__":
    main()
