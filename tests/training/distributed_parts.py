"""The scripts of several tests with two processes, which run this file. They are started once,
because starting takes long."""

import sys
from pathlib import Path

import distributed_checkpoints
import distributed_losses
import distributed_monitoring
import distributed_previews

sys.path.append(str(Path(__file__).parents[1]))
from training import distributed_pretraining

if __name__ == "__main__":
    for script in (
        distributed_losses,
        distributed_monitoring,
        distributed_previews,
        distributed_checkpoints,
        distributed_pretraining,
    ):
        folder = Path(sys.argv[1]) / script.__name__.split(".")[-1]
        folder.mkdir(exist_ok=True)
        script.main(folder)
