# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "a100-large"
# timeout = "12h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt train_vqvae` as a file.

accelerate launch scripts/train_vqvae.py [RECIPE] [--option value ...]
uv run scripts/train_vqvae.py [RECIPE] [--option value ...]
hf jobs uv run scripts/train_vqvae.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.train_vqvae import main


if __name__ == "__main__":
    main()
