"""Prints what an issue report needs: versions, hardware, commit."""

import json

from hf_igpt.commands.running import run_command


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt env`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    import argparse

    from hf_igpt.results import git_commit, hardware, package_versions

    argparse.ArgumentParser("hf-igpt env", description=__doc__).parse_args(argv)
    report = {"versions": package_versions(), "commit": git_commit(), "hardware": hardware()}
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
