# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "a10g-large"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt evaluate` as a file.

accelerate launch scripts/evaluate.py [RECIPE] [--option value ...]
uv run scripts/evaluate.py [RECIPE] [--option value ...]
hf jobs uv run scripts/evaluate.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.evaluate import main


if __name__ == "__main__":
    main()
