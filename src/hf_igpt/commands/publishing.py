"""Publishing at the end of a training command: checked before the work, done after it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from hf_igpt.hub.publishing import Target
    from hf_igpt.training.arguments import TrainerOptions


def publishing_target(arguments: "TrainerOptions", is_main_process: bool) -> "Target | None":
    """
    Where the run is to be published, None for nowhere. One process makes sure that it may be.

    Raises:
        ValueError: no or no valid `hub_model_id`, or nobody is logged in.
        PublishingError: the Hub refuses, or can't be reached.
    """
    if not arguments.push_to_hub:
        return None
    from hf_igpt.hub.publishing import Target, check_access
    from hf_igpt.hub.repository_names import checked_repository

    if arguments.hub_model_id is None:
        raise ValueError("`push_to_hub` needs `hub_model_id`: OWNER/NAME of the repository.")
    target = Target(checked_repository(arguments.hub_model_id), private=arguments.hub_private_repo)
    if is_main_process:
        check_access(target)
    return target


def publish_run(target: "Target", folder: str, license: str | None) -> dict[str, Any]:
    """Publishes the model that a finished run left in its folder; the results of that."""
    from hf_igpt.hub.pushing import push
    from hf_igpt.hub.releases import CardOptions, stage_model
    from hf_igpt.training.runs import MODEL

    run = Path(folder)
    return push(
        lambda staged: stage_model(run / MODEL, staged, target.repo_id, options=CardOptions(license)),
        run / "hub",
        target,
        arguments={"repo_id": target.repo_id, "private": target.private, "license": license},
    )
