"""`peerformer checkpoint consolidate`: the ordinary checkpoint of one that ranks wrote in parts."""

from peerformer.model.find import resolve_checkpoint
from peerformer.train.sharded_checkpoint import consolidate as put_together
from peerformer.train.sharded_checkpoint import is_sharded


def consolidate(source: str, /) -> None:
    """Put the ordinary checkpoint in the place of a sharded one, which FSDP wrote.

    Args:
        source: A run, the end of its name, or the directory of a checkpoint.
    """
    path = resolve_checkpoint(source)
    if not is_sharded(path):
        print(f"{path} is an ordinary checkpoint already.")
        return
    made = put_together(path)
    size_megabytes = sum(file.stat().st_size for file in made.iterdir()) / 1e6
    print(f"{made} is now an ordinary checkpoint ({size_megabytes:.1f} MB).")
