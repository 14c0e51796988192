"""The demo as a Space of the Hub: its code, its requirements, its card and its local models."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import distribution, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import unquote, urlsplit

import yaml
from huggingface_hub import HfApi
from packaging.requirements import Requirement

from ..data.opening import is_embedded
from ..hub.errors import explain_hub_errors
from .models import check_repo_id, title_of

CPU_WHEELS = "https://download.pytorch.org/whl/cpu"
EMBEDDED_EXTRAS = {"digits": "demo", "emoji": "emoji"}


def push_space(
    paths: Sequence[str | Path],
    space_id: str,
    data: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Publishes the demo of some models as a Space.

    Args:
        paths: Folders and Hub repositories. Folders become files of the Space.
        space_id: Space, such as `"user/space"`; created if it does not exist.
        data: Images among which the nearest are searched: an embedded data set, or one on the Hub.
        private: Whether a new Space is private; defaults to the account's setting.
        token: Access token; defaults to that of `hf auth login` or `HF_TOKEN`.

    Returns:
        The address of the Space.

    Raises:
        OSError: If the Hub refuses, or see `write_space`.
        ValueError: See `write_space`.
    """
    api = HfApi(token=token)
    with TemporaryDirectory() as folder, explain_hub_errors(space_id):
        write_space(paths, folder, space_id.split("/")[-1], data)
        api.create_repo(
            space_id, repo_type="space", space_sdk="gradio", private=private, exist_ok=True
        )
        api.upload_folder(
            repo_id=space_id,
            repo_type="space",
            folder_path=folder,
            commit_message="The demo, by titok_hf",
            delete_patterns=["models/**", "*.whl"],
        )
    return f"{api.endpoint}/spaces/{space_id}"


def write_space(
    paths: Sequence[str | Path], folder: str | Path, title: str, data: str | None = None
) -> None:
    """Writes the files of a Space: `app.py`, `requirements.txt` with the versions that are installed
    here, `README.md`, the models of local folders, and the wheel of this package if it is installed
    from a checkout or a wheel.

    Args:
        paths: Folders and Hub repositories.
        folder: Folder to write into; created if it does not exist.
        title: Title of the Space.
        data: See `push_space`.

    Raises:
        FileNotFoundError: If a path is neither a folder nor the name of a repository.
        ValueError: If two folders have the same name, `data` is a local folder, or the wheel
            cannot be built.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if data is not None and not is_embedded(data) and Path(data).exists():
        raise ValueError(
            f"A Space cannot read the folder {data}: name an embedded data set or one on the Hub."
        )
    local = {str(path): Path(path) for path in paths if Path(path).is_dir()}
    for path in paths:
        if str(path) not in local:
            check_repo_id(path)
    names = {path: title_of(path).replace("/", "-") for path in local}
    if twice := [name for name in names.values() if list(names.values()).count(name) > 1]:
        raise ValueError(f"Two folders are named {twice[0]}: rename one.")
    for path, name in names.items():
        shutil.copytree(local[path], folder / "models" / name, dirs_exist_ok=True)
    shown = [f"models/{names[str(path)]}" if str(path) in names else str(path) for path in paths]
    (folder / "app.py").write_text(
        "from titok_hf.app import build_app, launch_app, open_models\n\n"
        f"models = open_models({shown!r}, data={data!r})\n"
        'launch_app(build_app(models), host="0.0.0.0", port=7860)\n'
    )
    card = {
        "title": title,
        "emoji": "🧩",
        "sdk": "gradio",
        "sdk_version": version("gradio"),
        "python_version": f"{sys.version_info.major}.{sys.version_info.minor}",
        "app_file": "app.py",
        "models": [str(path) for path in paths if str(path) not in names],
    }
    (folder / "README.md").write_text(
        f"---\n{yaml.safe_dump(card, sort_keys=False, allow_unicode=True)}---\n\n# {title}\n\n"
        "Images as tokens: generate, reconstruct and edit them with "
        f"{', '.join(shown)}. Written by `titok app --push-space`.\n"
    )
    extras = ["app"]
    if data is not None and is_embedded(data):
        extras.append(EMBEDDED_EXTRAS[data.partition(":")[0]])
    lines = [*requirements(extras), own_requirement(folder)]
    (folder / "requirements.txt").write_text("\n".join(lines) + "\n")


def requirements(extras: Sequence[str]) -> list[str]:
    """Returns what this package requires for the demo, in the versions that are installed here."""
    pinned = [f"--extra-index-url {CPU_WHEELS}"]
    for text in requires("titok_hf") or []:
        requirement = Requirement(text)
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in extras):
            continue
        if requirement.name not in ("gradio", "titok_hf"):  # the card names Gradio's version
            # a local part, such as +cpu, names a build that the Space may not find
            number = version(requirement.name).partition("+")[0]
            pinned.append(f"{requirement.name}=={number}")
    return pinned


def own_requirement(folder: Path) -> str:
    """Returns the line that requires this package from where it was installed: from an index, an
    address, or a wheel, which is written to the folder.

    Source: PEP 610, which says how an installer records the origin.

    Raises:
        ValueError: If the wheel of a checkout cannot be built.
    """
    record = distribution("titok_hf").read_text("direct_url.json")
    if record is None:
        return f"titok_hf=={version('titok_hf')}"
    origin = json.loads(record)
    if "vcs_info" in origin:
        found = origin["vcs_info"]
        return f"titok_hf @ {found['vcs']}+{origin['url']}@{found['commit_id']}"
    address = urlsplit(origin["url"])
    if address.scheme != "file":
        return f"titok_hf @ {origin['url']}"
    place = Path(unquote(address.path))
    if place.is_file():
        shutil.copy(place, folder)
        return f"./{place.name}"
    with TemporaryDirectory() as source:  # an earlier build/ in the checkout would be in the wheel
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(place / name, source)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(place / "titok_hf", Path(source) / "titok_hf", ignore=ignored)
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--wheel-dir", str(folder), source]
        built = subprocess.run(command, capture_output=True, text=True)
    if built.returncode:
        raise ValueError(
            "The wheel of titok_hf could not be built, which needs pip and setuptools: "
            f"{built.stderr.strip().splitlines()[-1]}"
        )
    return f"./{next(folder.glob('titok_hf-*.whl')).name}"
