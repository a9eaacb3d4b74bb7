"""What the modules of tables share: where the results lie, and how a share is written."""

from pathlib import Path


ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"


def percent(share: float) -> str:
    """A share in percent."""
    return f"{100 * share:.1f} %"
