import pytest

from titok_hf.settings import check_keys, load_yaml, override, parse_yaml, suggestion


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("-2E+3", -2000.0),
        ("1.5e2", 150.0),
        ("1.0e-4", 1e-4),
        ("12", 12),
        ("e1", "e1"),
    ],
)
def test_a_number_with_an_exponent_is_a_number(tmp_path, text, value):
    content: dict = {}
    override(content, [f"key={text}"])
    (tmp_path / "file.yaml").write_text(f"key: {text}")
    assert content == load_yaml(tmp_path / "file.yaml") == {"key": value}
    assert type(content["key"]) is type(parse_yaml(text, "a test")) is type(value)


def test_a_file_that_is_no_yaml_is_named(tmp_path):
    path = tmp_path / "file.yaml"
    path.write_text("key: [1")
    with pytest.raises(ValueError, match=f"{path} is not valid YAML"):
        load_yaml(path)


def test_an_override_changes_plain_data_in_place():
    content = {"stages": {"vqgan": {}}}
    override(content, ["stages.vqgan.training.max_steps=3", "name=x"])
    assert content == {"stages": {"vqgan": {"training": {"max_steps": 3}}}, "name": "x"}


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ("name", "`key=value`, got 'name'"),
        ("name.first=x", "'name.first=x' sets a key of something that has no keys"),
        ("name=[1", r"name=\[1 is not valid YAML"),
    ],
)
def test_a_malformed_override_is_named(change, error):
    with pytest.raises(ValueError, match=error):
        override({"name": "x"}, [change])


def test_unknown_keys_are_refused():
    check_keys("part", {"psnr": 1}, iter(["psnr", "ssim"]))
    with pytest.raises(ValueError, match="'psrn' in `part`: did you mean 'psnr'"):
        check_keys("part", {"psrn": 1}, iter(["psnr", "ssim"]))
    with pytest.raises(ValueError, match="'xyz' in `part`: known are psnr, ssim"):
        check_keys("part", {"xyz": 1}, ["psnr", "ssim"])
    with pytest.raises(ValueError, match=r"`part` must be a mapping, got \['psnr'\]"):
        check_keys("part", ["psnr"], ["psnr"])


def test_a_name_close_to_none_gets_all_of_them():
    assert suggestion("xyz", ["psnr", "ssim"]) == "known are psnr, ssim."
    assert suggestion("psrn", ["psnr", "ssim"]) == "did you mean 'psnr'?"
