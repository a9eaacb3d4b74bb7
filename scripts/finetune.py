# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "a100-large"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt finetune` as a file.

accelerate launch scripts/finetune.py [RECIPE] [--option value ...]
uv run scripts/finetune.py [RECIPE] [--option value ...]
hf jobs uv run scripts/finetune.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.finetune import main


if __name__ == "__main__":
    main()
