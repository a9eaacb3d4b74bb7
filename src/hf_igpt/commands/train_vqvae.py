"""Trains a VQ-VAE, whose codes can take the place of a palette's colours, and leaves a model folder.

hf-igpt train_vqvae digits-vqvae
accelerate launch scripts/train_vqvae.py recipes/cifar10-cpu-vqvae.yaml --output_dir outputs/mine

Run again with the same options, it goes on where it was interrupted and redoes nothing that is finished. results.json
has PSNR, SSIM, and how many codes are used, on validation and on test; reconstruction.png shows held-out images.
"""

from hf_igpt.arguments import parse_arguments
from hf_igpt.commands.running import run_command, use_cpu_threads
from hf_igpt.training.vqvae_arguments import TrainVQVAEArguments


def parse(argv: list[str] | None = None) -> TrainVQVAEArguments:
    """The options of train_vqvae, checked."""
    arguments = parse_arguments(TrainVQVAEArguments, __doc__, argv)
    arguments.check()
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt train_vqvae`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.processes import process_state
    from hf_igpt.training.vqvae_training import train_vqvae

    process_state()
    use_cpu_threads(arguments.cpu_threads)
    train_vqvae(arguments)


if __name__ == "__main__":
    main()
