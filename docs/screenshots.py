"""Takes the pictures of docs/app.md: uses each tab of the web demo in a browser, as a person would.

    python docs/screenshots.py demo/pipeline vtp-emoji/vtp
    python docs/screenshots.py titok-emoji/pipeline --classes Flags "Smileys & Emotion" --suffix emoji

The tab Understand needs a VTP, and is left out without one. The script needs the extras `app`,
`demo` and `emoji`, Playwright, and Debian's Chromium.
"""

import argparse
import io
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory

from PIL import Image
from playwright.sync_api import Page, sync_playwright

from titok_hf.app import build_app, launch_app, open_models
from titok_hf.data import open_images

IMAGES = Path(__file__).parent / "images"
SECONDS = 60_000  # milliseconds


def shoot(page: Page, tab: str, suffix: str) -> None:
    """Writes a picture of a tab, in few colors."""
    page.wait_for_timeout(2000)
    taken = Image.open(io.BytesIO(page.screenshot(full_page=True))).convert("RGB")
    taken.quantize(96).save(IMAGES / f"app-{tab.lower()}{suffix}.png", optimize=True)


def open_tab(page: Page, name: str) -> None:
    page.get_by_role("tab", name=name, exact=True).click()


def press(page: Page, name: str) -> None:
    page.get_by_role("button", name=name, exact=True).click()


def choose(page: Page, label: str, *options: str) -> None:
    page.get_by_label(label, exact=True).click()
    for option in options:
        page.get_by_role("option", name=option, exact=True).click()
    page.keyboard.press("Escape")
    page.get_by_role("option", name=options[-1], exact=True).wait_for(state="hidden")


def use(page: Page, image: Path, classes: list[str], suffix: str) -> None:
    """Uses each tab with two classes and a picture at hand."""
    choose(page, "Classes", *classes)
    press(page, "Generate")
    page.locator("#step img").wait_for()
    page.get_by_role("slider", name="Progress").focus()
    for _ in range(12):
        page.keyboard.press("ArrowLeft")
    shoot(page, "Generate", suffix)

    open_tab(page, "Reconstruct")
    page.locator("#reconstruct-upload input[type=file]").set_input_files(image)
    page.locator("#reconstruct-upload img").wait_for()
    press(page, "Reconstruct")
    page.locator("#reconstructions img").nth(1).wait_for()
    shoot(page, "Reconstruct", suffix)

    open_tab(page, "Edit")
    for letter, name in zip("AB", classes, strict=True):
        choose(page, f"Class {letter}", name)
        press(page, f"Generate {letter}")
        page.locator(f"#picture-{letter} img").wait_for()
    press(page, "Interpolate from class A to class B")
    page.locator("#results img").nth(7).wait_for()
    shoot(page, "Edit", suffix)

    tab = page.get_by_role("tab", name="Understand", exact=True)
    if not tab.count():
        return
    tab.click()
    page.locator("#understand-upload input[type=file]").set_input_files(image)
    page.locator("#understand-upload img").wait_for()
    page.get_by_label("Words").fill("cookie, red apple, dog face, flag, person")
    press(page, "Understand")
    page.locator("#nearest img").first.wait_for()
    shoot(page, "Understand", suffix)


def main(paths: list[str], classes: list[str], suffix: str) -> None:
    app = build_app(open_models(paths, data="emoji:image_size=64,one_per_concept=true"))
    _, address, _ = launch_app(app, prevent_thread_lock=True)
    held_out = open_images("emoji:image_size=64,one_per_concept=true").dataset("test")
    cookie = next(row for row in held_out if row["text"] == "cookie")
    with TemporaryDirectory() as folder, sync_playwright() as playwright:
        image = Path(folder) / "emoji.png"
        cookie["image"].save(image)
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox"]
        )
        page = browser.new_page(viewport={"width": 1100, "height": 600})
        page.set_default_timeout(SECONDS)
        page.goto(address)
        use(page, image, classes, suffix)
        browser.close()
    app.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", help="pipelines and tokenizers of the demo")
    parser.add_argument(
        "--classes", nargs=2, default=["three", "eight"], help="classes to generate"
    )
    parser.add_argument("--suffix", default="", help="ends the pictures' names")
    given = parser.parse_args()
    main(given.models, given.classes, given.suffix and f"-{given.suffix}")
