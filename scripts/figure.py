# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "cpu-basic"
# timeout = "1h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt figure` as a file.

python scripts/figure.py [RECIPE] [--option value ...]
uv run scripts/figure.py [RECIPE] [--option value ...]
hf jobs uv run scripts/figure.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.figure import main


if __name__ == "__main__":
    main()
