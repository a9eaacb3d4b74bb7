"""
Takes the demo's pictures in docs/images: every tab as a desktop and as a phone shows it.

python docs/screenshots.py [--model outputs/digits/model]
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

from PIL import Image


ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests" / "demo"))

from browser import patience, running_browser, running_demo  # noqa: E402


SIZES = {"desktop": (1280, 800), "phone": (390, 844)}
TABS = {"images": "Images", "palette": "Palette", "features": "Features"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="outputs/digits/model", help="checkpoint folder or Hub name")
    parser.add_argument("--output_dir", default=ROOT / "docs" / "images", type=Path, help="folder for the PNG files")
    arguments = parser.parse_args()
    model = Path(arguments.model)
    # The page shows the name as it is given: the run's folder alone, wherever it lies.
    root = model.resolve().parents[2] if model.is_dir() else None
    name = str(model.resolve().relative_to(root)) if root else arguments.model
    with tempfile.TemporaryDirectory() as folder, running_browser() as browser:
        if root:
            (Path(folder) / Path(name).parts[0]).symlink_to(root / Path(name).parts[0])
        with running_demo(Path(folder), "--model", name) as demo:
            for device, (width, height) in SIZES.items():
                context = browser.new_context(viewport={"width": width, "height": height})
                context.set_default_timeout(patience(60))
                photograph(context.new_page(), demo.url, device, arguments.output_dir)
                context.close()


def photograph(page, url: str, device: str, folder: Path) -> None:
    """Uses the page as a visitor would and saves a picture of every tab."""
    page.goto(url)
    page.wait_for_selector("#view img")
    page.locator("#examples button").nth(3).click()
    wait_for(page, "image-status", "test image 4|flower|digit")
    page.wait_for_function("document.querySelectorAll('#surprise img').length == 1")
    set_number(page, "Rows kept", 4)
    set_number(page, "Number of images", 8)
    page.get_by_role("button", name="Draw", exact=True).click()
    wait_for(page, "progress", "Done: 8 images")
    for name, tab in TABS.items():
        page.get_by_role("tab", name=tab, exact=True).click()
        if name == "palette":
            page.wait_for_function("document.querySelectorAll('#palette img').length == 7")
        if name == "features":
            page.wait_for_function("document.querySelectorAll('#neighbours img').length == 9")
        # Gradio fades its progress out.
        page.wait_for_timeout(patience(1))
        save(page.screenshot(full_page=True), folder / f"demo-{name}-{device}.png")


def wait_for(page, element: str, text: str) -> None:
    page.wait_for_function(
        "([element, text]) => new RegExp(text).test(document.getElementById(element).innerText)", arg=[element, text]
    )


def set_number(page, label: str, value: int) -> None:
    field = page.get_by_label(f"number input for {label}")
    field.fill(str(value))
    field.press("Enter")


def save(screenshot: bytes, path: Path) -> None:
    with Image.open(io.BytesIO(screenshot)) as image:
        image.convert("RGB").save(path, format="PNG", optimize=True)
    print(f"{path.name}: {path.stat().st_size // 1000} kB")


if __name__ == "__main__":
    main()
