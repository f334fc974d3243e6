"""How a peer runs day by day, as flags of `node` and `join`: its hours, its uplink, its name."""

import re
from dataclasses import dataclass, replace
from typing import Annotated

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.node.assemble import PeerOptions
from peerformer.node.hours import read_hours

NODE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9}
BYTES = {"b": 8.0, "kb": 8e3, "mb": 8e6, "gb": 8e9}
RATES = {"bps": 1.0, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9}  # of bits, as providers write it
UNITS = BITS | BYTES | RATES | {f"{name}/s": bits for name, bits in (BITS | BYTES).items()}
BITS_LEAST, BITS_MOST = 64_000.0, 1e12  # below it votes themselves would come too late
_AMOUNT = re.compile(r"(\d+(?:\.\d+)?)\s*([a-zA-Z/]+)")


@Parameter(name="*")
@dataclass(frozen=True)
class RunningOptions:
    """What a peer is told of the day."""

    node_id: Annotated[
        str | None,
        Parameter(
            help="A name for this node: of its directory under runs/, if there is no --run, and in"
            " its prompt. Other peers go by its key."
        ),
    ] = None
    upload: Annotated[
        str | None,
        Parameter(help="Send at most so much, such as 10Mbit or 500kB a second; messages first."),
    ] = None
    between: Annotated[
        str | None,
        Parameter(help="Train at these local hours only, such as 22:00-07:00; vote at all hours."),
    ] = None
    stay: Annotated[
        bool,
        Parameter(
            negative=(),
            help="Stay a member at SIGTERM and Ctrl-C, to be back soon; else leave the swarm.",
        ),
    ] = False

    def __post_init__(self) -> None:
        """Refuse what cannot be read.

        Raises:
            ConfigError: it says which flag.
        """
        if self.node_id is not None and not NODE_NAME.fullmatch(self.node_id):
            raise ConfigError(
                f"--node-id {self.node_id!r:.80} is no name",
                why="letters, digits, dots, dashes and underlines, 64 at most",
                hint="--node-id my-laptop",
            )
        if self.upload is not None:
            bytes_per_second(self.upload)
        if self.between is not None:
            read_hours(self.between)

    def applied_to(self, options: PeerOptions) -> PeerOptions:
        """Return a peer's options with these."""
        hours = read_hours(self.between) if self.between else None
        upload = bytes_per_second(self.upload) if self.upload else None
        reach = replace(options.reach, upload_bytes_per_second=upload) if upload else options.reach
        return replace(options, hours=hours, stays=self.stay, reach=reach)

    def run_name(self, run: str | None, port: int) -> str:
        """Return the name of the directory under runs/."""
        return run or self.node_id or f"node-{port}"


def bytes_per_second(text: str) -> float:
    """Read `10Mbit`, `1.5 MB/s`, `500kbit`: bits as networks count them, or bytes.

    Raises:
        ConfigError: if it is no such amount, or no peer could take part with it.
    """
    found = _AMOUNT.fullmatch(text.strip())
    unit = found[2] if found else ""
    factor = UNITS.get(unit.lower())
    if found is None or factor is None:
        raise ConfigError(f"--upload {text!r:.40} is no amount a second", hint="--upload 10Mbit")
    bits = float(found[1]) * factor
    if not BITS_LEAST <= bits <= BITS_MOST:
        raise ConfigError(
            f"--upload {text!r:.40} is not between 64 kbit and 1 Tbit a second",
            hint="--upload 10Mbit",
        )
    return bits / 8
