"""
Renders the model cards of the released recipes in `model_cards/` from the results in `docs/results/`.

python docs/cards.py
"""

from pathlib import Path

from hf_igpt.hub.card_facts import CardFacts, facts_of_run
from hf_igpt.hub.evidence import read_result
from hf_igpt.hub.model_cards import model_card


ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
# The results of each recipe, and pictures with their captions; both by the names that they have in `docs/`.
RELEASED = {
    "digits": (
        ("digits", "digits-test", "digits-probe", "digits-probe-attentive", "digits-finetune", "digits-scratch"),
        {
            "digits-completions": "Held-out digits: the upper half is given, four completions, original",
            "digits-probe": "Accuracy of the probe at every layer",
        },
    ),
    "digits-masked": (
        ("digits-masked", "digits-masked-test"),
        {
            "digits-masked-samples": "Digits that the model drew, unselected",
            "digits-masked-inpainted": "Held-out digits: the middle is hidden, drawn four times, original",
        },
    ),
    "cifar10-cpu": (
        ("cifar10-cpu", "cifar10-cpu-test", "cifar10-cpu-probe", "cifar10-cpu-finetune", "cifar10-cpu-scratch"),
        {
            "cifar10-cpu-completions": "Test images: the upper half is given, four completions, original",
            "cifar10-cpu-loss": "Loss over the steps",
        },
    ),
    "cifar10-best-cpu": (
        (
            "cifar10-best-cpu",
            "cifar10-best-cpu-test",
            "cifar10-best-cpu-probe",
            "cifar10-best-cpu-knn",
            "cifar10-best-cpu-finetune",
        ),
        {"cifar10-best-cpu-completions": "Test images: the upper half is given, four completions, original"},
    ),
    "cifar10-masked-cpu": (
        ("cifar10-masked-cpu", "cifar10-masked-cpu-test", "cifar10-masked-cpu-probe"),
        {"cifar10-masked-cpu-samples": "Images that the model drew in 32 passes"},
    ),
}
DATASETS = dict.fromkeys(("cifar10-cpu", "cifar10-best-cpu", "cifar10-masked-cpu"), "uoft-cs/cifar10")


def facts(recipe: str) -> CardFacts:
    """What the card of a recipe is rendered from."""
    names, pictures = RELEASED[recipe]
    results = [read_result(ROOT / "docs" / "results" / f"{name}.json") for name in names]
    return facts_of_run(
        recipe,
        results,
        pictures={f"../docs/images/{name}.png": caption for name, caption in pictures.items()},
        license="apache-2.0",
        dataset=DATASETS.get(recipe),
        results_folder="../docs/results",
    )


def main() -> None:
    """Writes all cards."""
    for recipe in RELEASED:
        model_card(facts(recipe)).save(CARDS / f"{recipe}.md")


if __name__ == "__main__":
    main()
