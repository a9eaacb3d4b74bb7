"""Publishes a checkpoint with its results, pictures and a model card, or tokenized images, as one commit on the Hub.

hf-igpt push_to_hub --model outputs/digits/model --repo_id you/igpt-digits --license apache-2.0
hf-igpt push_to_hub --tokens outputs/digits/tokens --repo_id you/digits-tokens

Log in with `hf auth login` first. Results about the checkpoint are found in its run's folder. Every figure in the card
comes from one of them. Run again, it uploads what has changed; `--dry_run` shows what would be uploaded.
"""

from dataclasses import asdict, dataclass
from functools import partial
from operator import not_
from pathlib import Path

from hf_igpt.arguments import option, parse_arguments
from hf_igpt.commands.running import run_command


@dataclass(kw_only=True)
class PushToHubArguments:
    """Options of push_to_hub."""

    model: str | None = option(None, "checkpoint folder to publish", only_if=("tokens", not_))
    tokens: str | None = option(None, "instead, folder of tokenized images to publish")
    palette: str | None = option(
        None,
        "folder of the image processor that made the tokens; by default beside them, 'palette' or for other kinds of "
        "tokens 'processor'",
        only_if=("tokens", bool),
    )
    repo_id: str | None = option(None, "OWNER/NAME of the repository, which is made if there is none; needed")
    private: bool | None = option(None, "whether a new repository is private; by default as the owner has it set")
    results: list[str] = option(
        [], "more results.json files about this checkpoint, or folders with them", only_if=("model", bool)
    )
    license: str | None = option(None, "licence's name on the Hub, such as apache-2.0; by default none is stated")
    dataset: str | None = option(None, "name on the Hub of the images, where a run read a local copy of them")
    base_model: str | None = option(
        None, "name on the Hub of the model that this one started from", only_if=("model", bool)
    )
    tags: list[str] = option([], "more tags of the card", only_if=("model", bool))
    collection: str | None = option(None, "title of a collection of the owner's to put the repository into")
    parent_commit: str | None = option(
        None, "newest commit of a repository that others have written to, to say that you have seen it"
    )
    dry_run: bool = option(False, "put the files together and upload nothing")
    output_dir: str | None = option(
        None, "folder for a copy of what is published and for results.json; by default 'hub' beside the checkpoint"
    )


def parse(argv: list[str] | None = None) -> PushToHubArguments:
    """The options of push_to_hub, checked."""
    arguments = parse_arguments(PushToHubArguments, __doc__, argv)
    if not arguments.model and not arguments.tokens:
        raise ValueError("Give `--model`, a checkpoint folder, or `--tokens`, a folder of tokenized images.")
    if not arguments.repo_id:
        raise ValueError("Give `--repo_id`: OWNER/NAME of the repository on the Hub.")
    return arguments


def main(argv: list[str] | None = None) -> None:
    """Entry point of `hf-igpt push_to_hub`."""
    run_command(_main, argv)


def _main(argv: list[str] | None) -> None:
    arguments = parse(argv)
    from hf_igpt.data.token_repository import processor_beside
    from hf_igpt.hub.publishing import Target, check_access
    from hf_igpt.hub.pushing import push
    from hf_igpt.hub.releases import CardOptions, stage_model, stage_tokens
    from hf_igpt.hub.repository_names import checked_repository
    from hf_igpt.results import print_results

    repo_id = checked_repository(arguments.repo_id)
    card = CardOptions(arguments.license, arguments.dataset, arguments.base_model, arguments.tags)
    repo_type = "dataset" if arguments.tokens else "model"
    target = Target(repo_id, repo_type, arguments.private, arguments.parent_commit)
    source = Path(arguments.tokens or arguments.model)
    if arguments.tokens:
        palette = arguments.palette or processor_beside(source)
        stage = partial(stage_tokens, source, palette, name=repo_id, options=card)
    else:
        stage = partial(stage_model, source, name=repo_id, results=arguments.results, options=card)
    if not arguments.dry_run:
        check_access(target)
    output = arguments.output_dir or source.parent / ("hub-tokens" if arguments.tokens else "hub")
    print_results(
        push(
            lambda folder: stage(folder=folder),
            output,
            target,
            arguments=asdict(arguments),
            collection=arguments.collection,
            dry_run=arguments.dry_run,
        )
    )


if __name__ == "__main__":
    main()
