# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[tensorflow]"]
# [tool.hf-jobs]
# flavor = "cpu-upgrade"
# timeout = "2h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt convert_checkpoint` as a file.

python scripts/convert_checkpoint.py [--option value ...]
uv run scripts/convert_checkpoint.py [--option value ...]
hf jobs uv run scripts/convert_checkpoint.py [--option value ...]
"""

from hf_igpt.commands.convert_checkpoint import main


if __name__ == "__main__":
    main()
