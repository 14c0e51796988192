"""The demo as a person uses it, in a real browser: each tab, its texts, pixels and downloads."""

import ast
import io

import pytest
import torch
from PIL import Image

from titok_hf import TiTokPipeline
from titok_hf.data.digits import load_digits_dataset

pytestmark = [pytest.mark.xdist_group("app"), pytest.mark.slow]

SECONDS = 20_000  # milliseconds that a slow machine may take


@pytest.fixture
def page(browser, address):
    """The demo in a new window, which talks to nobody else."""
    page = browser.new_page(viewport={"width": 1400, "height": 1000})
    page.set_default_timeout(SECONDS)
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(address)
    page.get_by_role("tab", name="Reconstruct").wait_for()
    yield page
    page.close()
    assert all(url.startswith((address, "data:", "blob:")) for url in asked)


@pytest.fixture
def digit(tmp_path):
    """Path of an image file of the size of the models."""
    path = tmp_path / "digit.png"
    load_digits_dataset()["test"][0]["image"].resize((32, 32)).save(path)
    return path


def choose(page, label, option):
    page.get_by_label(label, exact=True).click()
    found = page.get_by_role("option", name=option, exact=True)
    found.click()
    page.keyboard.press("Escape")
    found.wait_for(state="hidden")


def pixels(page, place):
    """The pixels of a picture on the page."""
    picture = page.locator(f"{place} img").first
    picture.wait_for()
    source = picture.get_attribute("src")
    return Image.open(io.BytesIO(page.request.get(source).body())).convert("RGB")


def open_tab(page, name):
    page.get_by_role("tab", name=name, exact=True).click()


class TestGenerate:
    def test_images_steps_code_and_download(self, page, models, demo):
        choose(page, "Classes", "seven")
        page.get_by_role("button", name="Generate", exact=True).click()
        grid = pixels(page, "#samples")
        assert grid.width > 4 * 96
        # the code makes the same images
        code = page.locator(".cm-content").inner_text()
        call = ast.parse(code).body[-1].value.value
        given = {word.arg: word.value for word in call.keywords}
        assert ast.literal_eval(call.args[0]) == [7]
        pipeline = TiTokPipeline.from_pretrained(demo[0] / "pipeline")
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(
            [7],
            num_images_per_label=ast.literal_eval(given["num_images_per_label"]),
            num_inference_steps=ast.literal_eval(given["num_inference_steps"]),
            guidance_scale=ast.literal_eval(given["guidance_scale"]),
            generator=torch.Generator().manual_seed(0),
        ).images
        zoom = 96 // images[0].width
        last = images[-1].resize((32 * zoom, 32 * zoom), Image.Resampling.NEAREST)
        corner = grid.crop((grid.width - 4 - 32 * zoom, 4, grid.width - 4, 4 + 32 * zoom))
        assert corner.tobytes() == last.tobytes()
        # the first step still has dark tokens
        at_the_end = pixels(page, "#step")
        slider = page.get_by_role("slider", name="Progress")
        slider.focus()
        slider.press("Home")
        page.wait_for_timeout(1500)
        at_first = pixels(page, "#step")
        strip = (
            at_first.width - 4 - 32 * zoom,
            at_first.height - 8,
            at_first.width - 4,
            at_first.height - 7,
        )
        darkness = [
            sum(min(pixel) < 70 and max(pixel) < 70 for pixel in picture.crop(strip).getdata())
            for picture in (at_first, at_the_end)
        ]
        assert darkness[0] > 0 == darkness[1]
        # the download is the grid
        with page.expect_download() as downloading:
            page.locator("#samples").get_by_label("Download").click()
        assert Image.open(downloading.value.path()).convert("RGB").tobytes() == grid.tobytes()

    def test_no_class_is_a_sentence(self, page):
        page.get_by_role("button", name="Generate", exact=True).click()
        page.get_by_text("Give a class first.").wait_for()


class TestReconstruct:
    def test_of_an_upload(self, page, models, digit):
        open_tab(page, "Reconstruct")
        page.get_by_role("checkbox", name="autoencoder").check()
        page.locator("#reconstruct-upload input[type=file]").set_input_files(digit)
        page.locator("#reconstruct-upload img").wait_for()
        page.get_by_role("button", name="Reconstruct", exact=True).click()
        page.locator("#reconstructions img").nth(3).wait_for()
        original = pixels(page, "#reconstructions")
        expected = Image.open(digit).convert("RGB").resize(original.size, Image.Resampling.NEAREST)
        assert original.tobytes() == expected.tobytes()
        table = page.locator("#errors").inner_text()
        assert "4 tokens of 16 codes" in table and "latents of 4 x 4 x 4" in table
        assert len(pixels(page, "#strips").resize((4, 1)).getcolors()) > 1

    def test_of_a_drawing(self, page):
        open_tab(page, "Reconstruct")
        open_tab(page, "Draw")
        page.locator("#reconstruct-draw").get_by_label("Brush").click()
        canvas = page.locator("#reconstruct-draw canvas").first
        box = canvas.bounding_box()
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.mouse.move(x - 40, y)
        page.mouse.down()
        page.mouse.move(x + 40, y, steps=10)
        page.mouse.up()
        page.wait_for_timeout(1000)
        page.get_by_role("button", name="Reconstruct the drawing").click()
        drawn = pixels(page, "#reconstructions")
        lowest, highest = drawn.convert("L").getextrema()
        assert lowest < 128 and highest > 200  # a stroke on white

    @pytest.mark.parametrize("content", [b"no image", b""])
    def test_a_broken_upload_is_a_sentence(self, page, tmp_path, content):
        broken = tmp_path / "broken.png"
        broken.write_bytes(content)
        open_tab(page, "Reconstruct")
        page.locator("#reconstruct-upload input[type=file]").set_input_files(broken)
        page.wait_for_timeout(1000)
        page.get_by_role("button", name="Reconstruct", exact=True).click()
        page.get_by_text("The file is no image, or its header is damaged.").wait_for()

    def test_a_large_upload_is_refused(self, page, tmp_path):
        large = tmp_path / "large.png"
        large.write_bytes(b"\0" * 21 * 2**20)
        open_tab(page, "Reconstruct")
        page.locator("#reconstruct-upload input[type=file]").set_input_files(large)
        page.get_by_text("exceed the maximum allowed size", exact=False).first.wait_for()


class TestEdit:
    @pytest.fixture
    def pair(self, page):
        """A three and an eight."""
        open_tab(page, "Edit")
        for letter, name in (("A", "three"), ("B", "eight")):
            choose(page, f"Class {letter}", name)
            page.get_by_role("button", name=f"Generate {letter}", exact=True).click()
            page.locator(f"#picture-{letter} img").wait_for()
        page.locator("#tokens img").wait_for()
        return pixels(page, "#picture-A"), pixels(page, "#picture-B")

    def click_token(self, page, token):
        before = page.locator("#tokens img").get_attribute("src")
        box = page.locator("#tokens img").bounding_box()
        shown = 1024 * box["height"] / 40  # the row keeps its shape in the middle of its place
        left = (box["width"] - shown) / 2 if shown < box["width"] else 0
        width = min(shown, box["width"])
        page.locator("#tokens img").click(
            position={"x": left + (token + 0.5) * width / 4, "y": box["height"] / 2}
        )
        page.wait_for_function(
            "before => document.querySelector('#tokens img').src != before", arg=before
        )

    def test_clicked_tokens_are_dark_and_released_again(self, page, pair):
        full = pixels(page, "#tokens")
        self.click_token(page, 2)
        chosen = pixels(page, "#tokens")
        cells = [chosen.getpixel((int((token + 0.5) * 256), 20)) for token in range(4)]
        assert [sum(cell) < 200 for cell in cells] == [token == 2 for token in range(4)]
        self.click_token(page, 2)
        assert pixels(page, "#tokens").tobytes() == full.tobytes()

    def test_swapping_all_tokens_swaps_the_images(self, page, pair):
        page.get_by_role("button", name="Choose all tokens").click()
        page.wait_for_timeout(1000)
        page.get_by_role("button", name="Swap the chosen tokens").click()
        page.locator("#results img").nth(3).wait_for()
        results = page.locator("#results img").all()
        sources = [result.get_attribute("src") for result in results[:4]]
        images = [page.request.get(source).body() for source in sources]
        assert images[0] == images[3] and images[1] == images[2] and images[0] != images[1]

    @pytest.mark.parametrize(
        ("button", "count"),
        [
            ("Draw the chosen tokens", 2),
            ("What do the chosen tokens paint?", 2),
            ("Interpolate from A to B", 8),
            ("Interpolate from class A", 8),
        ],
    )
    def test_each_button_makes_pictures(self, page, pair, button, count):
        self.click_token(page, 0)
        page.get_by_role("button", name=button).click()
        page.locator("#results img").nth(count - 1).wait_for()
        assert page.locator("#results img").count() == count

    def test_an_upload_is_encoded(self, page, digit):
        open_tab(page, "Edit")
        page.locator("#upload-A input[type=file]").set_input_files(digit)
        page.locator("#picture-A img").wait_for()
        page.locator("#tokens img").wait_for()

    def test_without_images_a_sentence_tells_what_to_do(self, page):
        open_tab(page, "Edit")
        page.get_by_role("button", name="Interpolate from A to B").click()
        page.get_by_text("Give an image A first.").wait_for()


class TestUnderstand:
    @staticmethod
    def understand(page, digit, words):
        open_tab(page, "Understand")
        page.locator("#understand-upload input[type=file]").set_input_files(digit)
        page.locator("#understand-upload img").wait_for()
        page.get_by_label("Words").fill(words)
        page.get_by_role("button", name="Understand", exact=True).click()

    def test_words_patches_and_nearest_images(self, page, digit):
        self.understand(page, digit, "zero, one, five")
        pixels(page, "#patches")
        words = page.locator("#words").inner_text()
        assert all(word in words for word in ("zero", "one", "five", "%"))
        assert page.locator("#nearest img").count() == 8

    def test_one_word_is_too_few(self, page, digit):
        self.understand(page, digit, "zero")
        page.get_by_text("at least two different names", exact=False).wait_for()


def test_a_model_that_does_not_load_is_a_sentence_without_its_path(page):
    text = page.get_by_text("was not loaded", exact=False).inner_text()
    assert "here was not loaded" in text and "/nothing" not in text
