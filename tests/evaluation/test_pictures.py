import numpy as np
import pytest
import torch
from PIL import Image

from titok_hf.evaluation.pictures import (
    BACKGROUND,
    generation_grid,
    image_grid,
    patch_colors,
    reconstruction_grid,
    token_strip,
    training_curves,
    unmasking_grid,
)

GAP = 4
COLORS = [(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255), (255, 0, 255)]


def squares(*colors, width=8, height=8):
    return [Image.new("RGB", (width, height), color) for color in colors]


def cells(grid, num_rows, num_columns, width, height):
    """The cells of a grid, as arrays; counted from the right, as labels stand on the left."""
    pixels = np.asarray(grid)[:, grid.width - num_columns * (width + GAP) :]
    tops, lefts = (
        range(0, count * step, step)
        for count, step in ((num_rows, height + GAP), (num_columns, width + GAP))
    )
    return [[pixels[GAP + top :, left:][:height, :width] for left in lefts] for top in tops]


def colors_of(*grid):
    """The one color of each cell."""
    found = [
        [set(map(tuple, cell.reshape(-1, 3).tolist())) for cell in row] for row in cells(*grid)
    ]
    return [[colors.pop() if len(colors) == 1 else colors for colors in row] for row in found]


class TestImageGrid:
    @pytest.mark.parametrize("zoom", [1, 3])
    def test_images_lie_in_rows_with_gaps(self, zoom):
        rows = [squares(*COLORS[:3], width=8, height=6), squares(*COLORS[3:], width=8, height=6)]
        grid = image_grid(rows, zoom=zoom)
        width, height = 8 * zoom, 6 * zoom
        assert grid.size == (GAP + 3 * (width + GAP), GAP + 2 * (height + GAP))
        assert colors_of(grid, 2, 3, width, height) == [COLORS[:3], COLORS[3:]]
        gaps = [grid.getpixel((x, GAP)) for x in (0, GAP - 1, GAP + width, grid.width - 1)]
        assert gaps == [BACKGROUND] * 4

    def test_short_rows_end_in_background(self):
        grid = image_grid([squares(*COLORS[:2]), squares(COLORS[2])], zoom=1)
        assert colors_of(grid, 2, 2, 8, 8) == [COLORS[:2], [COLORS[2], BACKGROUND]]

    def test_labels_take_a_margin_as_wide_as_the_widest(self):
        rows = [squares(COLORS[0], height=20), squares(COLORS[1], height=20)]
        bare = image_grid(rows)
        narrow, wide = (image_grid(rows, ["I", label]) for label in ("II", "a long label"))
        assert bare.width < narrow.width < wide.width
        assert bare.height == wide.height
        margin = np.asarray(wide)[:, : wide.width - bare.width]
        for top in (0, wide.height // 2):  # something is written beside each row
            assert (margin[top : top + wide.height // 2] != BACKGROUND).any()
        assert colors_of(wide, 2, 1, 16, 40) == [[COLORS[0]], [COLORS[1]]]

    def test_zooming_keeps_pixels_sharp(self):
        image = Image.fromarray(np.array([[[0, 0, 0], [255, 255, 255]]], np.uint8))
        ((cell,),) = cells(image_grid([[image]], zoom=4), 1, 1, 8, 4)
        assert (cell[:, :4] == 0).all() and (cell[:, 4:] == 255).all()


class TestPatchColors:
    @pytest.mark.parametrize("number", [1, 2, 3])
    def test_of_few_patches(self, number):
        picture = patch_colors(torch.eye(8)[:number], number, 1)
        assert (picture.size, picture.mode) == ((1, number), "RGB")
        assert (np.asarray(picture).reshape(number, 3)[:, number:] == 0).all()


class TestTokenStrip:
    def test_masked_tokens_are_dark_and_others_bright(self):
        codes = np.array([0, 64, 63, 64])
        strip = np.asarray(token_strip(codes, 64, width=16, height=3)).astype(int)
        assert strip.shape == (3, 16, 3)
        brightness = strip.max(-1).reshape(3, 4, 4)
        assert (brightness[:, [1, 3]] < 80).all()
        assert (brightness[:, [0, 2]] > 200).all()

    def test_a_code_has_one_color_and_its_neighbors_another(self):
        codes = np.array([*range(64), 7])
        strip = np.asarray(token_strip(codes, 64, width=65, height=1)).astype(int)[0]
        assert (strip[7] == strip[64]).all()
        assert len({tuple(color) for color in strip[:64]}) > 60
        assert (np.abs(np.diff(strip[:64], axis=0)).sum(-1) > 50).all()


class TestReconstructionGrid:
    def test_images_lie_above_their_reconstructions(self):
        originals = torch.tensor(COLORS[:5]).float().view(5, 3, 1, 1).expand(5, 3, 8, 8) / 255
        grid = reconstruction_grid(originals, 1 - originals, columns=2, pairs=2, zoom=1)
        inverse = [tuple(255 - value for value in color) for color in COLORS]
        assert colors_of(grid, 4, 2, 8, 8) == [COLORS[:2], inverse[:2], COLORS[2:4], inverse[2:4]]

    @pytest.mark.parametrize(("num_images", "num_rows"), [(1, 2), (16, 2), (17, 4), (200, 6)])
    def test_it_shows_at_most_three_pairs_of_rows(self, num_images, num_rows):
        images = torch.rand(num_images, 3, 8, 8) * 2 - 0.5
        assert reconstruction_grid(images, images).height == GAP + num_rows * (16 + GAP)


class TestGenerationGrid:
    def test_each_name_has_a_row_of_its_first_images(self):
        grid = generation_grid(squares(*COLORS), ["a", "b"], columns=2, zoom=1)
        assert colors_of(grid, 2, 2, 8, 8) == [[COLORS[0], COLORS[1]], [COLORS[3], COLORS[4]]]

    def test_a_name_given_twice_has_two_rows(self):
        grid = generation_grid(squares(*COLORS[:4]), ["a", "a"], zoom=1)
        assert colors_of(grid, 2, 2, 8, 8) == [[COLORS[0], COLORS[1]], [COLORS[2], COLORS[3]]]


class TestUnmaskingGrid:
    STEPS = 4

    @pytest.fixture
    def grid(self, pipeline):
        pipeline.register_to_config(num_inference_steps=self.STEPS)
        return unmasking_grid(pipeline, ["three", 7, 0], zoom=1)

    def test_labels_are_rows_and_steps_are_columns(self, grid):
        assert grid.height == GAP + 3 * (32 + 5 + GAP)
        assert (
            len({cell.tobytes() for row in cells(grid, 3, self.STEPS, 32, 37) for cell in row})
            > self.STEPS
        )

    def test_fewer_tokens_are_dark_from_step_to_step(self, grid):
        for row in cells(grid, 3, self.STEPS, 32, 37):
            # 8 tokens of 4 pixels, in the last 4 lines
            masked = [int((cell[-1].reshape(8, 4, 3).max((1, 2)) < 80).sum()) for cell in row]
            assert masked[-1] == 0 < masked[0] < 8
            assert masked == sorted(set(masked), reverse=True)

    def test_the_last_column_is_what_the_pipeline_makes(self, grid, pipeline):
        images = pipeline(["three", 7, 0], generator=torch.Generator().manual_seed(0)).images
        for row, image in zip(cells(grid, 3, self.STEPS, 32, 37), images, strict=True):
            assert np.array_equal(row[-1][:32], np.asarray(image))

    def test_the_seed_decides(self, pipeline):
        first, second, other = (unmasking_grid(pipeline, [3], seed).tobytes() for seed in (0, 0, 1))
        assert first == second != other


class TestTrainingCurves:
    def test_a_stage_too_short_to_log_is_left_empty(self, tmp_path):
        training_curves({"short": [{"step": 3, "train_loss": 1.0}]}, tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as picture:
            assert picture.format == "PNG"

    def test_each_stage_has_a_column(self, tmp_path):
        history = [
            {"step": 1, "loss": 2.0, "quantizer_loss": 0.5, "codebook_usage": 0.2},
            {"step": 2, "loss": 1.0, "quantizer_loss": 0.25, "codebook_usage": 0.9},
            {"step": 2, "train_loss": 1.5},
        ]
        sizes = []
        for count in (1, 3):
            training_curves({f"stage_{i}": history for i in range(count)}, tmp_path / "curves.png")
            with Image.open(tmp_path / "curves.png") as picture:
                assert picture.format == "PNG"
                sizes.append(picture.size)
        assert sizes[1] == (3 * sizes[0][0], sizes[0][1])

    @pytest.mark.parametrize(
        "entries",
        [
            [{"step": 1, "loss": 2.0}],  # nothing but the loss
            [
                {"step": 1, "loss": 2.0, "adversarial_loss": -1.0},
                {"step": 2, "loss": 1.0, "adversarial_loss": 0.5},
            ],
            [
                {"step": 1, "loss": 2.0},
                {"step": 2, "loss": 1.0, "perceptual_loss": 0.5},
            ],  # a part that starts late
        ],
    )
    def test_any_losses_can_be_drawn(self, tmp_path, entries):
        training_curves({"stage": entries}, tmp_path / "curves.png")
        with Image.open(tmp_path / "curves.png") as picture:
            colors = picture.convert("RGB").getcolors(maxcolors=100_000)
        assert len(colors) > 10

    def test_other_numbers_give_another_picture(self, tmp_path):
        pictures = []
        for loss in (1.0, 3.0):
            training_curves(
                {"stage": [{"step": 1, "loss": 2.0}, {"step": 2, "loss": loss}]},
                tmp_path / "curves.png",
            )
            pictures.append((tmp_path / "curves.png").read_bytes())
        assert pictures[0] != pictures[1]
