"""`train` under any launcher: the loop of one process, with the ranks it was started with.

Alone it is the loop and nothing else. Among others, rank 0 runs the whole of it (run directory,
journal, progress) and the other ranks the same steps without a word.
"""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from peerformer.cluster.group import Group
from peerformer.cluster.launch import Launch, detect
from peerformer.config import Config
from peerformer.train import loop
from peerformer.train.hardware import compute_settings
from peerformer.train.loop import TrainResult
from peerformer.train.run_directory import RunDirectory


def this_launch() -> Launch:
    """Return who this process is.

    Raises:
        ConfigError: if a launcher's variables cannot be used.
    """
    return detect(os.environ, parent=os.getppid())


def train(
    config: Config,
    *,
    run: str | None = None,
    on_event: Callable[[Any], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
    should_stop: Callable[[], bool] = lambda: False,
    root: Path = Path("runs"),
) -> TrainResult:
    """Train a model, alone or with the other ranks of torchrun, mpirun or srun.

    The result is the same on every rank; `on_event` and `report` are called on rank 0 alone.

    Args:
        config: all settings; see `peerformer.settings.resolve`. Its batch size is of all ranks.
        run: the run's name; None takes up the newest unfinished run of these settings.
        on_event: called with every record of the journal as it happens.
        report: called with lines for a person.
        should_stop: asked on every rank after every step; if true on one, all stop, and it is
            saved once.
        root: where runs are kept.

    Raises:
        ConfigError, DataError, CheckpointError, DivergedError, ClusterError: on one rank.
        ToldElsewhere: on the others.
    """
    launch = this_launch()
    if launch.is_alone:
        return loop.train(
            config,
            run=run,
            on_event=on_event,
            report=report,
            should_stop=should_stop,
            root=root,
        )
    with Group(launch, config) as group:
        if launch.rank == 0:
            return loop.train(
                config,
                run=run,
                on_event=on_event,
                report=report,
                should_stop=should_stop,
                root=root,
                ranks=group,
            )
        unknown = RunDirectory(root, resumed=False)  # rank 0 chooses it
        with compute_settings(config.training):
            training = loop.prepare_training(config, unknown, lambda _: None, group)
            training.resume()
            return loop.run_training(training, should_stop)
