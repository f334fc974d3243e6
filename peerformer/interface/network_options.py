"""The flags that every command takes alike that runs a peer: where it listens, how it is reached.

A command has one parameter `network: NetworkOptions = NetworkOptions()` and passes
`**network.of_peer()` to `PeerOptions`.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from peerformer.errors import ConfigError
from peerformer.node.authority import read_group
from peerformer.node.dialling import DialError, parted
from peerformer.node.limits import RelayLimits
from peerformer.node.reach import Reach

FIRST_PORT = 8_888
QUOTA = RelayLimits()


@Parameter(name="*")
@dataclass(frozen=True)
class NetworkOptions:
    """How a peer meets others, as flags."""

    port: Annotated[int, Parameter(help="Port to listen on.")] = FIRST_PORT
    host: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help="Address to listen on, more than once for several; 0.0.0.0 and :: open it to all.",
        ),
    ] = ("127.0.0.1",)
    announce: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            show_default=False,
            help="host:port where others reach this peer, of a forwarded port or a name.",
        ),
    ] = ()
    behind_nat: Annotated[
        bool,
        Parameter(
            negative=(), help="Nobody can dial this peer: be reached through others' relays."
        ),
    ] = False
    relay: Annotated[
        bool,
        Parameter(negative=(), help="Relay for peers of this swarm that nobody can dial."),
    ] = False
    relay_mbit: Annotated[float, Parameter(help="Most that is relayed, in megabits a second.")] = (
        QUOTA.bytes_per_second_max * 8 / 1e6
    )
    relay_gb_a_day: Annotated[
        float, Parameter(help="Most that is relayed, in gigabytes a day.")
    ] = QUOTA.bytes_per_day_max / 1e9

    lan: Annotated[
        bool,
        Parameter(negative=(), help="Announce this peer on the local network; find others there."),
    ] = False

    authority: Annotated[
        Path | None, Parameter(help="authority.pem of a private group: nobody else may connect.")
    ] = None
    certificate: Annotated[
        Path | None, Parameter(help="This peer's certificate of that group.")
    ] = None
    iroh: Annotated[
        bool, Parameter(negative=(), help="Listen and dial by iroh too: QUIC over UDP; slow.")
    ] = False
    iroh_relay: Annotated[
        str | None, Parameter(help="URL of an iroh relay, to get through routers by it.")
    ] = None

    def of_peer(self) -> dict[str, Any]:
        """Return what these flags mean as arguments of `PeerOptions`.

        Raises:
            ConfigError: if a value cannot be meant.
        """
        if not 0 <= self.port <= 65_535:
            raise ConfigError("--port must be between 0 and 65535", why=f"given: {self.port}")
        for address in self.announce:
            try:
                parted(address)
            except DialError as error:
                raise ConfigError(
                    "--announce takes an address", why=str(error), hint="--announce HOST:PORT"
                ) from error
        for name, value in (("mbit", self.relay_mbit), ("gb-a-day", self.relay_gb_a_day)):
            if not 0 < value < float("inf"):
                raise ConfigError(f"--relay-{name} must be more than 0", why=f"given: {value}")
        if self.relay and self.behind_nat:
            raise ConfigError(
                "--relay and --behind-nat exclude each other",
                why="nobody can dial a relay that nobody can dial",
                hint="leave one of them out",
            )
        if self.certificate and not self.authority:
            raise ConfigError(
                "--certificate says nothing without --authority", hint="--authority authority.pem"
            )
        if self.iroh_relay and not (self.iroh and self.iroh_relay.startswith("https://")):
            raise ConfigError(
                "--iroh-relay takes the URL of an iroh relay, beside --iroh",
                why=f"given: {self.iroh_relay:.80}",
                hint="--iroh --iroh-relay https://relay.example.org",
            )
        if self.iroh and self.authority:
            raise ConfigError(
                "--iroh and --authority exclude each other",
                why="iroh knows no certificate: strangers would get in by it",
                hint="leave one of them out",
            )
        return {"host": self.host, "port": self.port, "reach": self._reach()}

    def _reach(self) -> Reach:
        quota = RelayLimits(
            bytes_per_second_max=self.relay_mbit * 1e6 / 8,
            bytes_per_day_max=self.relay_gb_a_day * 1e9,
        )
        return Reach(
            announced=self.announce,
            behind_nat=self.behind_nat,
            relay=quota if self.relay else None,
            lan=self.lan,
            iroh=self.iroh,
            iroh_relay=self.iroh_relay,
            group=read_group(self.authority, self.certificate) if self.authority else None,
        )
