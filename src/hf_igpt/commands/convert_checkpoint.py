"""Converts OpenAI's TensorFlow checkpoints and transformers' ImageGPT into ours, and ours back into transformers'.

hf-igpt convert_checkpoint --source downloads/model.ckpt-1000000 --output_dir outputs/igpt-s
hf-igpt convert_checkpoint --source openai/imagegpt-small --output_dir outputs/imagegpt-small
hf-igpt convert_checkpoint --source outputs/digits/model --target imagegpt --output_dir outputs/digits-native

The folder is whole or absent. OpenAI's palette, `kmeans_centers.npy`, is looked for beside its checkpoint.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command


@dataclass(kw_only=True)
class ConvertCheckpointArguments:
    """Options of convert_checkpoint."""

    source: str | None = option(
        None, "a TensorFlow checkpoint, without its ending; or a folder or Hub name of a model; needed"
    )
    target: str = option(
        "igpt", "igpt: this package's model; imagegpt: transformers' own ImageGPT", choices=("igpt", "imagegpt")
    )
    palette: str | None = option(
        None, "kmeans_centers.npy of a TensorFlow checkpoint; by default the one beside the checkpoint"
    )
    output_dir: str = option("outputs/converted", "folder for the converted checkpoint")


def parse(argv: list[str] | None = None) -> ConvertCheckpointArguments:
    """The options of convert_checkpoint, checked."""
    arguments = parse_arguments(ConvertCheckpointArguments, __doc__, argv)
    if not arguments.source:
        raise ValueError("Give `--source`: a TensorFlow checkpoint without its ending, a folder or a Hub name.")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt convert_checkpoint`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.hub.conversion import convert
    from hf_igpt.results import print_results, write_results
    from hf_igpt.storage import check_writable, staged_folder

    started = time.perf_counter()
    check_writable(Path(arguments.output_dir).parent)
    with staged_folder(arguments.output_dir, overwrite=True) as staged:
        converted = convert(arguments.source, arguments.target, arguments.palette)
        converted.save(staged)
        seconds = time.perf_counter() - started
        results = write_results(staged, metrics=converted.summary(), arguments=asdict(arguments), wall_seconds=seconds)
    print_results(results)


if __name__ == "__main__":
    main()
