import pytest

from titok_hf.hub.folders import output_file, whole_file, whole_folder


@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_folder_appears_when_it_is_whole(tmp_path, kind):
    target = tmp_path / "not" / "there" / "folder"
    with whole_folder(kind(target)) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "a.txt").write_text("a")
        assert not target.exists()
    assert (target / "sub" / "a.txt").read_text() == "a"
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_folder_is_filled(tmp_path):
    target = tmp_path / "folder"
    target.mkdir()
    with whole_folder(target) as folder:
        (folder / "a.txt").write_text("a")
        assert not list(target.iterdir())
    assert (target / "a.txt").read_text() == "a"


def test_what_is_there_is_not_replaced(tmp_path):
    folder, file = tmp_path / "folder", tmp_path / "file"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    file.write_text("mine")
    for target in (folder, file):
        with pytest.raises(FileExistsError, match=f"{target} exists already"), whole_folder(target):
            pytest.fail("must not be entered")
    assert (folder / "mine.txt").read_text() == file.read_text() == "mine"
    assert sorted(tmp_path.iterdir()) == [file, folder]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_nothing(tmp_path, error):
    with pytest.raises(error, match="half way"), whole_folder(tmp_path / "folder") as folder:
        (folder / "a.txt").write_text("a")
        raise error("half way")
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_left_is_cleared(tmp_path):
    left, of_tokenize = tmp_path / ".folder.writing", tmp_path / "folder.partial"
    for folder in (left, of_tokenize):
        folder.mkdir()
        (folder / "old.txt").write_text("old")
    with whole_folder(tmp_path / "folder") as folder:
        (folder / "new.txt").write_text("new")
    assert not left.exists() and [path.name for path in (tmp_path / "folder").iterdir()] == [
        "new.txt"
    ]
    assert (
        of_tokenize / "old.txt"
    ).read_text() == "old"  # an unfinished data set of `titok tokenize`


def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileExistsError, match="exists already"), whole_folder("."):
        pytest.fail("must not be entered")


def test_a_link_to_an_empty_folder_is_filled(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with whole_folder(tmp_path / "link") as folder:
        (folder / "a.txt").write_text("a")
    assert (tmp_path / "real" / "a.txt").read_text() == "a"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("kind", [str, lambda path: path], ids=["str", "Path"])
def test_a_file_appears_when_it_is_whole(tmp_path, kind, shared):
    target = tmp_path / "not" / "there" / "file.txt"
    for content in ("first", "second"):
        before = target.read_text() if target.exists() else None
        with whole_file(kind(target), shared) as partial:
            partial.write_text(content)
            assert (target.read_text() if target.exists() else None) == before
        assert target.read_text() == content
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_earlier_file(tmp_path, error):
    target = tmp_path / "file.txt"
    target.write_text("earlier")
    with pytest.raises(error, match="half way"), whole_file(target) as partial:
        partial.write_text("half")
        raise error("half way")
    assert target.read_text() == "earlier"
    assert list(tmp_path.iterdir()) == [target]


def test_what_a_killed_run_left_of_a_file_is_overwritten(tmp_path):
    (tmp_path / "file.txt.partial").write_text("old and longer")
    with whole_file(tmp_path / "file.txt") as partial:
        partial.write_text("new")
    assert [path.name for path in tmp_path.iterdir()] == ["file.txt"]
    assert (tmp_path / "file.txt").read_text() == "new"


def test_processes_may_write_one_file_at_once(tmp_path):
    target = tmp_path / "file.txt"
    with whole_file(target, shared=True) as first, whole_file(target, shared=True) as second:
        first.write_text("first")
        second.write_text("second")
    assert target.read_text() == "first"
    assert list(tmp_path.iterdir()) == [target]


class TestOutputFile:
    def test_its_folder_is_made(self, tmp_path):
        path = output_file(tmp_path / "new" / "deep" / "grid.png", [".png", ".jpg"])
        path.write_bytes(b"")
        assert path == tmp_path / "new" / "deep" / "grid.png"
        assert output_file(str(path), [".png"]) == path  # may be replaced

    def test_another_extension_is_refused(self, tmp_path):
        with pytest.raises(ValueError, match=r"must end in \.jpg or \.png, got '.*grid\.doc'"):
            output_file(tmp_path / "new" / "grid.doc", [".png", ".jpg"])
        with pytest.raises(ValueError, match=r"must end in \.npz, got '.*reference'"):
            output_file(tmp_path / "reference", [".npz"])
        assert not (tmp_path / "new").exists()

    def test_a_place_that_cannot_be_written_is_refused(self, tmp_path):
        (tmp_path / "file").write_bytes(b"")
        (tmp_path / "folder").mkdir()
        with pytest.raises(ValueError, match="file must be a folder to write into"):
            output_file(tmp_path / "file" / "grid.png")
        with pytest.raises(ValueError, match="folder must be a file that can be written"):
            output_file(tmp_path / "folder")
