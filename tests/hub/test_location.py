from titok_hf.hub.location import split_location


def test_what_finds_files_is_split_from_the_rest():
    arguments = {"revision": None, "dtype": "float32", "subfolder": "vae", "config": 3}
    assert split_location(arguments) == (
        {"revision": None, "subfolder": "vae"},
        {"dtype": "float32", "config": 3},
    )
    assert len(arguments) == 4
