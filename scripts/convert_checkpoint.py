# /// script
# requires-python = ">=3.11"
# dependencies = ["hf-igpt[tensorflow]"]
# ///
"""
The command `hf-igpt convert_checkpoint` as a file.

python scripts/convert_checkpoint.py [--option value ...]
"""

from hf_igpt.commands.convert_checkpoint import main


if __name__ == "__main__":
    main()
