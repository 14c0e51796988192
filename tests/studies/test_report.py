import statistics

import pytest
from PIL import Image

from titok_hf.studies import Study
from titok_hf.studies.report import correlation_table, markdown_table, plot, summarize, tables

FRECHET = {"cosine": [3.0, 4.0, 8.0], "linear": [1.0, 2.5, 2.5]}


@pytest.fixture
def schedule():
    return Study.load("schedule")


@pytest.fixture
def runs():
    """Three seeds of two of the four schedules, the seeds in turn; the second schedule has one more
    second each."""
    return [
        {
            "variant": {"schedule": schedule},
            "seed": seed,
            "seconds": 10 + number,
            "values": {
                "frechet_distance": FRECHET[schedule][seed],
                "accuracy": 0.5,
                "unknown": 1.0,
            },
        }
        for seed in range(3)
        for number, schedule in enumerate(("linear", "cosine"))
    ]


def test_means_and_deviations_are_over_the_seeds(schedule, runs):
    rows = summarize(schedule, runs)
    assert [row["values"]["schedule"] for row in rows] == [
        "cosine",
        "linear",
    ]  # in the study's order
    assert [row["seconds"] for row in rows] == [11, 10]
    for row in rows:
        values = FRECHET[row["values"]["schedule"]]
        assert row["runs"] == 3
        assert row["frechet_distance"]["mean"] == pytest.approx(statistics.mean(values))
        assert row["frechet_distance"]["std"] == pytest.approx(statistics.stdev(values))
        assert row["accuracy"] == {"mean": 0.5, "std": 0}


def test_one_run_has_no_deviation(schedule, runs):
    row = summarize(schedule, runs[:1])[0]
    assert (row["runs"], row["accuracy"]) == (1, {"mean": 0.5, "std": None})
    assert markdown_table(schedule, [row]).splitlines()[-1] == "| linear | 1.000 | 50.0% | 1 | 10 |"


def test_the_table_has_a_line_a_variant(schedule, runs):
    assert markdown_table(schedule, summarize(schedule, runs)).splitlines() == [
        "| schedule | Fréchet distance ↓ | classed right ↑ | runs | seconds each |",
        "| --- | --- | --- | --- | --- |",
        "| cosine | 5.000 ± 2.646 | 50.0% ± 0.0% | 3 | 11 |",
        "| linear | 2.000 ± 0.866 | 50.0% ± 0.0% | 3 | 10 |",
    ]


def test_what_was_not_measured_has_no_column(schedule, runs):
    for run in runs:
        del run["values"]["accuracy"]
    assert "classed right" not in markdown_table(schedule, summarize(schedule, runs))


@pytest.mark.parametrize(
    "name", ["schedule", "tokens", "scaling"]
)  # names along the axis, or numbers and two curves, or FLOPs
def test_the_picture_has_a_panel_a_metric(name, tmp_path):
    study = Study.load(name)
    runs = [
        {
            "variant": variant.values,
            "seed": seed,
            "seconds": 1,
            "flops": 10**12 * (number + 1),
            "values": dict.fromkeys(study.metrics, 0.1 * number + 0.01 * seed),
        }
        for number, variant in enumerate(study.variants())
        for seed in range(2)
    ]
    plot(study, summarize(study, runs), tmp_path / "plot.png")
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.width == len(study.panels) * 272
        assert len(picture.convert("RGB").getcolors(maxcolors=10**6)) > 20
        assert picture.convert("RGB").getpixel((1, 1)) == (255, 255, 255)
    assert (tmp_path / "plot.png").stat().st_size < 60_000


class TestScaling:
    @pytest.fixture
    def study(self):
        values = {"objective": ["reconstruction", "all"], "steps": [100, 200]}
        return Study.load("scaling", values=values)

    @pytest.fixture
    def runs(self, study):
        """Two seeds of four variants, whose Fréchet distances are 1 to 8; VIV is twice as large, LNC
        falls with its square, LDS is 0 or 1."""
        return [
            {
                "variant": variant.values,
                "seed": seed,
                "tuned": 0.5,
                "seconds": 3,
                "flops": 10**12,
                "values": {
                    "frechet_distance": distance,
                    "velocity_variance": 2.0 * distance,
                    "same_class_neighbors": -float(distance**2),
                    "spatial_similarity": float(distance > 4),
                },
            }
            for distance, (variant, seed) in enumerate(
                ((variant, seed) for variant in study.variants() for seed in range(2)), start=1
            )
        ]

    def test_axes_of_one_value_have_no_column_and_the_tuned_setting_has_one(self, study, runs):
        header, _, first, *_ = markdown_table(study, summarize(study, runs)).splitlines()
        assert header.startswith("| objective | steps | time shift | Fréchet distance ↓ |")
        assert first.startswith("| reconstruction | 100 | 0.5 | 1.500 ± 0.707 |")

    def test_correlations_are_over_runs_and_over_means(self, study, runs):
        header, _, *lines = correlation_table(study, runs).splitlines()
        assert header == (
            "| correlation with Fréchet distance | Pearson, 8 runs | Spearman, 8 runs | Pearson, means "
            "of 4 variants |"
        )
        found = dict(line.strip("| ").split(" | ", 1) for line in lines)
        distances = list(range(1, 9))
        by_hand = statistics.correlation(distances, [-(d**2) for d in distances])
        assert found["VIV ↓"] == "+1.00 | +1.00 | +1.00"
        assert found["LNC ↑"].startswith(f"{by_hand:+.2f} | -1.00 | ")
        # ranks of equal values are equal: 4 of 2.5 and 4 of 6.5
        tied = statistics.correlation(distances, [2.5] * 4 + [6.5] * 4)
        assert found["LDS ↑"].split(" | ")[1] == f"{tied:+.2f}"
        assert list(found) == ["VIV ↓", "LNC ↑", "LDS ↑"]

    def test_a_constant_has_none(self, study, runs):
        for run in runs:
            run["values"]["velocity_variance"] = 1.0
        assert "| VIV ↓ | none | none | none |" in correlation_table(study, runs)

    def test_they_are_part_of_the_tables_if_there_are_enough_runs(self, study, runs):
        assert "correlation with" in tables(study, summarize(study, runs), runs)
        assert "correlation with" not in tables(study, summarize(study, runs[:3]), runs[:3])
