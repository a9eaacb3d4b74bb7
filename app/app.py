"""
A Space that shows Image GPT checkpoints: those whose Hub names stand in the variable IGPT_CHECKPOINTS, separated by
spaces; without one, scikit-learn's digits, trained at the start.
"""

import os

from hf_igpt.commands.demo import main


if __name__ == "__main__":
    names = os.environ.get("IGPT_CHECKPOINTS", "").split()
    main(["--model", *names] if names else [])
