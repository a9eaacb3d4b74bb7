# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[train]"]
# [tool.hf-jobs]
# flavor = "cpu-upgrade"
# timeout = "2h"
# secrets = ["HF_TOKEN"]
# ///
"""
The command `hf-igpt push_to_hub` as a file.

python scripts/push_to_hub.py [--option value ...]
uv run scripts/push_to_hub.py [--option value ...]
hf jobs uv run scripts/push_to_hub.py [--option value ...]
"""

from hf_igpt.commands.push_to_hub import main


if __name__ == "__main__":
    main()
