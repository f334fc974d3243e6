"""`peerformer doctor cluster`: what a launcher started, how fast it is, and what to change."""

from peerformer.cluster.doctor import examine
from peerformer.cluster.training import this_launch
from peerformer.errors import ToldElsewhere
from peerformer.interface.options import ConfigOptions, resolve_options


def cluster(*, options: ConfigOptions = ConfigOptions()) -> None:
    """Tell what was found under a launcher: ranks, hosts, devices, bandwidth, latency, advice.

    Start it as you start `train`: torchrun --nproc-per-node 4 -m peerformer doctor cluster
    """
    launch = this_launch()
    lines = examine(launch, resolve_options(options).config)
    if launch.rank:
        raise ToldElsewhere(0)
    for line in lines:
        print(line)
