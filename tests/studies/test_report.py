import statistics

import pytest
from PIL import Image

from titok_hf.studies import Study
from titok_hf.studies.report import markdown_table, plot, summarize

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
        "| schedule | Fréchet distance ↓ | classed as the right digit ↑ | runs | seconds each |",
        "| --- | --- | --- | --- | --- |",
        "| cosine | 5.000 ± 2.646 | 50.0% ± 0.0% | 3 | 11 |",
        "| linear | 2.000 ± 0.866 | 50.0% ± 0.0% | 3 | 10 |",
    ]


def test_what_was_not_measured_has_no_column(schedule, runs):
    for run in runs:
        del run["values"]["accuracy"]
    assert "right digit" not in markdown_table(schedule, summarize(schedule, runs))


@pytest.mark.parametrize(
    "name", ["schedule", "tokens"]
)  # names along the axis, or numbers and two curves
def test_the_picture_has_a_panel_a_metric(name, tmp_path):
    study = Study.load(name)
    runs = [
        {
            "variant": variant.values,
            "seed": seed,
            "seconds": 1,
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
