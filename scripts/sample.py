# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "a10g-large"
# timeout = "3h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt sample` as a file.

python scripts/sample.py [RECIPE] [--option value ...]
uv run scripts/sample.py [RECIPE] [--option value ...]
hf jobs uv run scripts/sample.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.sample import main


if __name__ == "__main__":
    main()
