# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "a100-large"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt palette_sweep` as a file.

accelerate launch scripts/palette_sweep.py [RECIPE] [--option value ...]
uv run scripts/palette_sweep.py [RECIPE] [--option value ...]
hf jobs uv run scripts/palette_sweep.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.palette_sweep import main


if __name__ == "__main__":
    main()
