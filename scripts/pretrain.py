# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# ///
"""
The command `hf-igpt pretrain` as a file.

accelerate launch scripts/pretrain.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.pretrain import main


if __name__ == "__main__":
    main()
