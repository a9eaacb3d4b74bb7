# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "cpu-upgrade"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt tokenize_dataset` as a file.

python scripts/tokenize_dataset.py [RECIPE] [--option value ...]
accelerate launch --num_processes 8 scripts/tokenize_dataset.py [RECIPE] [--option value ...]
uv run scripts/tokenize_dataset.py [RECIPE] [--option value ...]
hf jobs uv run scripts/tokenize_dataset.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.tokenize_dataset import main


if __name__ == "__main__":
    main()
