import dataclasses
import json

import pytest
import yaml

from titok_hf.evaluation import Protocol
from titok_hf.evaluation.protocol import METRICS

FIELDS = {
    "name": "mine",
    "source": "of a test",
    "image_size": 32,
    "crop": "center",
    "rounding": "round",
    "extractor": "digits",
    "reference": "originals",
    "metrics": {"reconstruction": ["psnr"]},
}


@pytest.fixture
def write(tmp_path):
    """Writes a protocol's file: `write({"base": "demo"})`."""

    def write(content, name="mine.yaml"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


class TestNamed:
    """Returns what the references do, from the sources that the protocols name."""

    @pytest.mark.parametrize(
        ("name", "image_size", "crop", "rounding", "extractor", "reference"),
        [
            ("titok-rfid", 256, "center", "truncate", "inception", "originals"),
            ("vtp-rfid", 256, "adm", "truncate", "inception-pytorch-fid", "originals"),
            ("adm-256", 256, "adm", "truncate", "inception", "batch"),
            ("adm-512", 512, "adm", "truncate", "inception", "batch"),
            ("demo", 32, "center", "round", "digits", "train"),
            ("emoji", 32, "center", "round", "emoji", "train"),
        ],
    )
    def test_images_and_network(self, name, image_size, crop, rounding, extractor, reference):
        protocol = Protocol.load(name)
        found = (
            protocol.image_size,
            protocol.crop,
            protocol.rounding,
            protocol.extractor,
            protocol.reference,
        )
        assert found == (image_size, crop, rounding, extractor, reference)
        assert protocol.name == name and protocol.interpolation == "bicubic" and protocol.source

    def test_numbers_of_metrics(self):
        adm, titok, vtp = (Protocol.load(name) for name in ("adm-256", "titok-rfid", "vtp-rfid"))
        assert (adm.num_samples, adm.inception_score_splits, adm.precision_neighbors) == (
            50000,
            10,
            3,
        )
        assert titok.inception_score_splits == 1
        assert (vtp.encoder_autocast, titok.encoder_autocast) == ("bfloat16", None)
        assert (adm.density_neighbors, adm.kernel_subsets, adm.kernel_subset_size) == (5, 100, 1000)

    def test_metrics(self):
        assert Protocol.load("adm-512").metrics_of("generation") == (
            "frechet_distance",
            "spatial_frechet_distance",
            "inception_score",
            "precision",
            "recall",
        )
        assert Protocol.load("vtp-rfid").metrics_of("reconstruction") == (
            "frechet_distance",
            "psnr",
            "ssim",
            "lpips",
        )
        assert {"frechet_distance", "inception_score"} <= {
            *Protocol.load("titok-rfid").metrics_of("reconstruction")
        }

    def test_a_protocol_is_for_its_tasks(self):
        with pytest.raises(
            ValueError,
            match=r"'adm-256' is for generation, not for reconstruction.*`metrics\.recon",
        ):
            Protocol.load("adm-256").metrics_of("reconstruction")

    def test_adm_512_is_adm_256_but_for_the_size(self):
        small, large = (Protocol.load(name).to_dict() for name in ("adm-256", "adm-512"))
        assert {name for name in small if small[name] != large[name]} == {
            "name",
            "source",
            "image_size",
        }


class TestFiles:
    def test_all_fields(self, write):
        fields = {name: value for name, value in FIELDS.items() if name != "name"}
        assert Protocol.load(write(fields)) == Protocol(**FIELDS)
        assert Protocol.load(str(write(FIELDS, "other.yaml"))).name == "mine"

    def test_a_base_gives_the_other_fields(self, write):
        protocol = Protocol.load(write({"base": "titok-rfid", "image_size": 512}))
        expected = dataclasses.replace(Protocol.load("titok-rfid"), name="mine", image_size=512)
        assert protocol == expected

    @pytest.mark.parametrize("name", ["titok-rfid", "adm-256"])
    def test_a_file_cannot_pass_for_a_named_protocol(self, write, name):
        assert (
            Protocol.load(write({"base": name, "image_size": 64}, f"{name}.yaml")).name
            == f"{name}*"
        )
        assert (
            Protocol.load(write({"base": name, "image_size": 64, "name": name})).name == f"{name}*"
        )

    @pytest.mark.parametrize(
        ("content", "error"),
        [
            ("[a, b]", r"mine\.yaml must hold the fields of a protocol, got \['a', 'b'\]"),
            ("", r"mine\.yaml must hold the fields of a protocol, got None"),
            ("image_size: [1", r"mine\.yaml is not valid YAML"),
            ({"base": "titok"}, "`base` must be one of titok-rfid, .*, got 'titok'"),
            ({"base": ["demo"]}, r"`base` must be one of titok-rfid, .*, got \['demo'\]"),
            (
                {"base": "demo", "imagesize": 3},
                "Unknown key 'imagesize' in `protocol`: did you mean 'image_size'?",
            ),
            (
                {"image_size": 3, "crop": "none"},
                "The protocol lacks source, rounding, extractor, reference, metrics",
            ),
        ],
    )
    def test_what_is_wrong_with_one(self, write, content, error):
        with pytest.raises(ValueError, match=error):
            Protocol.load(write(content))

    @pytest.mark.parametrize("source", ["titok", "nowhere/mine.yaml", "."])
    def test_there_is_none(self, source, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        with pytest.raises(
            FileNotFoundError, match=r"one of titok-rfid, vtp-rfid, .* or a YAML file, got '"
        ):
            Protocol.load(source)


class TestOverrides:
    def test_they_change_fields_and_the_name(self):
        protocol = Protocol.load(
            "titok-rfid", ["image_size=512", "rounding=round", "classifier=owner/model"]
        )
        changes = {
            "name": "titok-rfid*",
            "image_size": 512,
            "rounding": "round",
            "classifier": "owner/model",
        }
        assert protocol == dataclasses.replace(Protocol.load("titok-rfid"), **changes)

    def test_metrics_of_one_task(self):
        protocol = Protocol.load("demo", ["metrics.generation=[precision]"])
        assert protocol.metrics_of("generation") == ("precision",)
        assert protocol.metrics_of("reconstruction") == Protocol.load("demo").metrics_of(
            "reconstruction"
        )

    def test_metrics_of_a_task_that_had_none(self):
        protocol = Protocol.load("titok-rfid", ["metrics.generation=[frechet_distance]"])
        assert protocol.metrics_of("generation") == ("frechet_distance",)

    def test_the_last_one_counts_and_none_leaves_the_name(self):
        assert Protocol.load("demo", ["image_size=3", "image_size=5"]).image_size == 5
        assert Protocol.load("demo", []).name == "demo"

    def test_a_number_with_an_exponent_is_a_number(self, write):
        file = write("base: demo\nimage_size: 1e2\n")
        for source, changes in (("demo", ["image_size=1e2"]), (file, [])):
            with pytest.raises(ValueError, match=r"`image_size` must be .*, got 100\.0"):
                Protocol.load(source, changes)

    def test_they_complete_a_file(self, write):
        content = {name: value for name, value in FIELDS.items() if name not in ("name", "metrics")}
        protocol = Protocol.load(write(content), ["metrics.reconstruction=[psnr]"])
        assert protocol == Protocol(**{**FIELDS, "name": "mine*"})

    @pytest.mark.parametrize(
        ("change", "error"),
        [
            ("image_size", "`key=value`, got 'image_size'"),
            ("image_size=[1", r"image_size=\[1 is not valid YAML"),
            ("imagesize=3", "Unknown key 'imagesize' in `protocol`: did you mean 'image_size'?"),
            (
                "zzz=3",
                "Unknown key 'zzz' in `protocol`: known are name, source, .*encoder_autocast",
            ),
            (
                "metrics.drawing=[psnr]",
                "`metrics` are of reconstruction or generation, got 'drawing'",
            ),
            (
                "metrics.reconstruction=[fid]",
                "Unknown metric 'fid' of reconstruction: known are frechet_distance, ",
            ),
            (
                "metrics.reconstruction=[psrn]",
                "Unknown metric 'psrn' of reconstruction: did you mean 'psnr'?",
            ),
            ("metrics.generation=[psnr]", "Unknown metric 'psnr' of generation"),
            ("metrics.generation=[5]", "Unknown metric 5 of generation"),
            (
                "metrics.generation=precision",
                "`metrics.generation` must be a list of metrics, got 'precision'",
            ),
            ("metrics.generation=[]", r"`metrics.generation` must be a list of metrics, got \[\]"),
            ("metrics.generation=5", "`metrics.generation` must be a list of metrics, got 5"),
            ("metrics={}", "`metrics` must name metrics for reconstruction or generation, got {}"),
            ("metrics=[psnr]", r"`metrics` must name metrics .*, got \['psnr'\]"),
        ],
    )
    def test_what_is_wrong_with_one(self, change, error):
        with pytest.raises(ValueError, match=error):
            Protocol.load("demo", [change])

    def test_metrics_that_are_no_mapping(self, write):
        path = write({**FIELDS, "metrics": ["psnr"]})
        with pytest.raises(ValueError, match=r"'metrics\.generation=\[precision\]' sets a key"):
            Protocol.load(path, ["metrics.generation=[precision]"])


class TestValues:
    @pytest.mark.parametrize(
        ("field", "value", "error"),
        [
            ("crop", "random", "one of center, adm, squash, none, got 'random'"),
            ("crop", ["center"], r"one of center, adm, squash, none, got \['center'\]"),
            ("crop", None, "one of center, adm, squash, none, got None"),
            ("rounding", "floor", "one of truncate, round, got 'floor'"),
            ("reference", "test", "one of originals, train, batch, got 'test'"),
            ("interpolation", "nearest", "one of bicubic, bilinear, lanczos, got 'nearest'"),
            ("encoder_autocast", "float64", "one of bfloat16, float16, got 'float64'"),
            ("image_size", 0, "an integer of at least 1, got 0"),
            ("image_size", 256.0, "an integer of at least 1, got 256.0"),
            ("image_size", True, "an integer of at least 1, got True"),
            ("num_samples", 0, "an integer of at least 1, got 0"),
            ("num_samples", "many", "an integer of at least 1, got 'many'"),
            ("inception_score_splits", -1, "an integer of at least 1, got -1"),
            ("precision_neighbors", None, "an integer of at least 1, got None"),
            ("extractor", 5, "text, got 5"),
            ("extractor", None, "text, got None"),
            ("classifier", 5, "text, got 5"),
            ("name", ["mine"], r"text, got \['mine'\]"),
        ],
    )
    def test_wrong_ones_are_refused_by_name(self, field, value, error):
        with pytest.raises(ValueError, match=f"^`{field}` must be {error}"):
            Protocol.from_dict({**FIELDS, field: value})

    @pytest.mark.parametrize("field", ["classifier", "num_samples", "encoder_autocast"])
    def test_none_where_there_may_be_none(self, field):
        assert getattr(Protocol.from_dict({**FIELDS, field: None}), field) is None

    @pytest.mark.parametrize("task", METRICS)
    def test_every_metric_can_be_asked_for(self, task):
        protocol = Protocol.from_dict({**FIELDS, "metrics": {task: METRICS[task]}})
        assert protocol.metrics_of(task) == METRICS[task]

    @pytest.mark.parametrize("name", ["titok-rfid", "vtp-rfid", "adm-256", "adm-512", "demo"])
    def test_json_and_back(self, name):
        protocol = Protocol.load(name)
        assert Protocol.from_dict(json.loads(json.dumps(protocol.to_dict()))) == protocol


class TestInterpolation:
    @pytest.mark.parametrize(
        ("crop", "interpolation"),
        [("center", "bicubic"), ("adm", "bicubic"), ("squash", "bilinear"), ("none", None)],
    )
    def test_what_is_recorded_is_what_is_done(self, crop, interpolation):
        assert Protocol.load("demo", [f"crop={crop}"]).interpolation == interpolation

    def test_it_may_be_chosen_for_center_crops_only(self):
        assert Protocol.load("demo", ["interpolation=lanczos"]).interpolation == "lanczos"
        with pytest.raises(
            ValueError, match="is for `crop=center`; `crop=squash` is bilinear, got 'lanczos'"
        ):
            Protocol.load("demo", ["crop=squash", "interpolation=lanczos"])


def test_subsets_of_one_image_have_no_distance():
    with pytest.raises(ValueError, match="`kernel_subset_size` must be at least 2"):
        Protocol.load("demo", ["kernel_subset_size=1"])
