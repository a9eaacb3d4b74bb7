# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[demo]"]
# [tool.hf-jobs]
# flavor = "cpu-basic"
# timeout = "1h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt demo` as a file.

python scripts/demo.py [RECIPE] [--option value ...]
uv run scripts/demo.py [RECIPE] [--option value ...]
hf jobs uv run scripts/demo.py [RECIPE] [--option value ...]
"""

from hf_igpt.commands.demo import main


if __name__ == "__main__":
    main()
