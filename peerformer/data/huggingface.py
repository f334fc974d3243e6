"""Data sets of Hugging Face: folders that `datasets` wrote, folders of data files, and the hub.

`--data hf:NAME` streams a data set by its name on the hub, or a folder here in the hub's layout
(`README.md`, data files; no script of a data set is ever run). A folder that `save_to_disk` wrote
is known by its files and needs no `hf:`. Nothing is held but the row at hand.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peerformer.data.readers import Record
from peerformer.errors import DataError

PREFIX = "hf"
ONE_SPLIT, MANY_SPLITS = "state.json", "dataset_dict.json"  # files that save_to_disk writes
HINT = "peerformer data look hf:NAME --data.dataset_split train"


def is_saved(path: Path) -> bool:
    """Tell whether a folder was written by `save_to_disk`."""
    return (path / MANY_SPLITS).is_file() or (
        (path / ONE_SPLIT).is_file() and (path / "dataset_info.json").is_file()
    )


def dataset_records(name: str, config: str | None, split: str) -> Iterator[Record]:
    """Yield the rows of a data set.

    Args:
        name: a folder that `save_to_disk` wrote, or one in the hub's layout, or a name on the hub.
        config: which configuration of it, where it has several.
        split: which split of it.

    Raises:
        DataError: there is no such data set, configuration or split, it is damaged, or the hub
            cannot be reached.
    """
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            "data sets of Hugging Face are read by datasets, which is not installed",
            where=name,
            hint="pip install 'peerformer[data]'",
        ) from error
    datasets.disable_progress_bars()
    try:
        if is_saved(Path(name)):
            rows = _of_split(datasets.load_from_disk(name), split, name)
        else:
            rows = datasets.load_dataset(name, config, split=split, streaming=True)
        for row in rows:
            yield row if isinstance(row, Mapping) else {}
    except DataError:
        raise
    except Exception as error:  # of the library, of its readers, or of the network: any kind
        raise DataError(
            f"the data set {name} cannot be read",
            where=f"{PREFIX}:{name}",
            why=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
            hint=HINT,
        ) from error


def _of_split(loaded: Any, split: str, name: str) -> Any:
    if not isinstance(loaded, dict):
        return loaded.to_iterable_dataset()
    if split not in loaded:
        raise DataError(
            f"the data set has no split {split!r}",
            where=name,
            hint=f"--data.dataset_split {next(iter(loaded), 'train')}"
            f"   (there are: {', '.join(loaded)})",
        )
    return loaded[split].to_iterable_dataset()
