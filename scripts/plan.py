# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "cpu-basic"
# timeout = "1h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt plan` as a file.

python scripts/plan.py [RECIPE] [--option value ...]
uv run scripts/plan.py [RECIPE] [--option value ...]
hf jobs uv run scripts/plan.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.plan import main


if __name__ == "__main__":
    main()
