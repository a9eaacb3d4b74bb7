# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "cpu-upgrade"
# timeout = "6h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt fit_palette` as a file.

python scripts/fit_palette.py [RECIPE] [--option value ...]
accelerate launch --num_processes 8 scripts/fit_palette.py [RECIPE] [--option value ...]
uv run scripts/fit_palette.py [RECIPE] [--option value ...]
hf jobs uv run scripts/fit_palette.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.fit_palette import main


if __name__ == "__main__":
    main()
