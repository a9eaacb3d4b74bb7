# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# ///
"""
The command `hf-igpt finetune` as a file.

accelerate launch scripts/finetune.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.finetune import main


if __name__ == "__main__":
    main()
