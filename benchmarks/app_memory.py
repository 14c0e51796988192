"""Memory of `titok app` before and after a hundred bad requests and many users.

    python benchmarks/app_memory.py demo/pipeline
    python benchmarks/app_memory.py demo/pipeline --users 200

The benchmark serves the pipeline in a process of its own, whose resident memory it prints: after one
good request, after a hundred that are refused, and after the users, who reconstruct an image each in
turn.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil
from gradio_client import Client, handle_file
from gradio_client.exceptions import AppError
from PIL import Image

from titok_hf.app.models import title_of

Request = tuple[str, list]


def write_uploads(folder: Path) -> tuple[Path, Path]:
    """Writes an image and a text file with the name of an image, and returns both paths."""
    image, text = folder / "image.png", folder / "text.png"
    Image.effect_noise((40, 30), 50).convert("RGB").save(image)
    text.write_text("no image")
    return image, text


def bad_requests(model: str, image: Path, text: Path) -> list[Request]:
    """Returns requests that a demo of a pipeline refuses."""
    return [
        ("/generate", ["nothing", [1], 1, 1, 1.0, 0]),
        ("/generate", [model, [], 1, 1, 1.0, 0]),
        ("/generate", [model, [10**6], 1, 1, 1.0, 0]),
        ("/generate", [model, [1], 10**6, 1, 1.0, 0]),
        ("/generate", [model, [1], 1, 10**6, 1.0, 0]),
        ("/generate", [model, [1], 1, 1, float("1e30"), -1]),
        ("/reconstruct", [handle_file(text), [model]]),
        ("/reconstruct", [handle_file(image), ["nothing"]]),
        ("/reconstruct", [handle_file(image), []]),
        ("/reconstruct", [None, [model]]),
    ]


def refusal(client: Client, request: Request) -> str:
    """Sends a request that must be refused, and returns the message."""
    api_name, arguments = request
    try:
        client.predict(*arguments, api_name=api_name)
    except AppError as error:
        return str(error)
    raise AssertionError(f"{request} was answered")


def main(pipeline: str, rounds: int = 10, users: int = 20) -> None:
    command = [sys.executable, "-u", "-m", "titok_hf.cli", "app", pipeline]
    served = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        [address] = re.findall(r"http://[\w.:]+", served.stdout.readline())
        process = psutil.Process(served.pid)
        model = title_of(pipeline)
        with tempfile.TemporaryDirectory() as temporary:
            image, text = write_uploads(Path(temporary))

            def use() -> None:
                arguments = (handle_file(image), [model])
                Client(address, verbose=False).predict(*arguments, api_name="/reconstruct")

            def show(when: str) -> None:
                print(f"{when}: {process.memory_info().rss / 2**20:.0f} MiB", flush=True)

            use()
            show("after one request")
            client = Client(address, verbose=False)
            for request in bad_requests(model, image, text) * rounds:
                refusal(client, request)
            show(f"after {10 * rounds} bad ones")
            for _ in range(users):
                use()
            show(f"after {users} users")
    finally:
        served.terminate()
        served.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("pipeline", help="folder of a pipeline, such as demo/pipeline")
    parser.add_argument("--users", type=int, default=20, help="number of users (default: 20)")
    main(**vars(parser.parse_args()))
