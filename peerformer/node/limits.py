"""What a transport grants to others, each limit with its reason."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """All limits of one node's transport."""

    handshake_seconds_max: float = 5.0  # an honest one takes a few round trips
    half_open_max: int = 256  # connections in their handshake; each costs some tens of kilobytes
    half_open_per_address_max: int = 64  # a laboratory behind one address may start at once
    connections_max: int = 2_048
    connections_per_key_max: int = 40  # one for messages, the rest for blobs
    stream_bytes_max: int = 64 * 1024
    stranger_frame_bytes_max: int = 64 * 1024  # a greeting and a request to join fit
    frame_bytes_max: int = 4 * 1024 * 1024  # the largest packet of the protocol
    queue_bytes_max: int = 16 * 1024 * 1024  # unsent bytes of one connection; then frames drop
    idle_seconds_max: float = 5.0  # then a keep-alive
    silence_seconds_max: float = 15.0  # then the peer counts as gone
    close_seconds_max: float = 2.0
    hold_seconds_max: float = 4.0  # a request for a blob that is not there yet waits so long
    fetcher_idle_seconds_max: float = 60.0  # a blob connection without a request, or a slow reader
    idle_fetchers_max: int = 4  # idle blob connections kept per peer
