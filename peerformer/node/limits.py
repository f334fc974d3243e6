"""What a transport grants to others, each limit with its reason."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """All limits of one node's transport."""

    connect_seconds_max: float = 4.0  # of TCP: time for the system to ask three times
    handshake_seconds_max: float = 5.0  # an honest one takes a few round trips
    half_open_max: int = 256  # connections in their handshake; each costs some tens of kilobytes
    half_open_per_address_max: int = 64  # a laboratory behind one address may start at once
    connections_max: int = 2_048  # that came in, of all kinds
    connections_per_address_max: int = 1_024  # 64 peers on one machine, with their blobs
    connections_per_key_max: int = 40  # one for messages, the rest for blobs
    stream_bytes_max: int = 64 * 1024  # read ahead, per connection
    stranger_frame_bytes_max: int = 64 * 1024  # a greeting and a request to join fit
    strangers_bytes_per_second_max: float = 1024 * 1024  # in; a frame counts as 2 KiB more
    frame_bytes_max: int = 4 * 1024 * 1024  # the largest packet of the protocol
    frames_bytes_max: int = 256 * 1024 * 1024  # of frames not yet whole; then the largest is cut
    queue_bytes_max: int = 16 * 1024 * 1024  # unsent bytes of one connection; then frames drop
    queues_bytes_max: int = 256 * 1024 * 1024  # those of all together; short queues are exempt
    stall_seconds_max: float = 15.0  # a peer that takes nothing of what waits for it is cut
    idle_seconds_max: float = 5.0  # then a keep-alive
    look_seconds: float = 1.0  # how often a connection is looked at
    silence_seconds_max: float = 15.0  # then the peer counts as gone
    close_seconds_max: float = 2.0  # for what is queued to leave
    hold_seconds_max: float = 4.0  # a request for a blob that is not there yet waits so long
    fetcher_idle_seconds_max: float = 60.0  # a blob connection without a request
    served_at_once_max: int = 64  # blobs on their way out; each holds a piece in memory
    served_per_peer_max: int = 8  # the chunks that a newcomer asks of one source at once, twice
    served_to_strangers_max: int = 16  # of the first: members are never kept waiting by strangers
    serve_bytes_per_second_min: float = 16_384.0  # whoever takes a blob more slowly is cut
    idle_fetchers_max: int = 4  # idle blob connections kept per peer


# What a stranger's frame counts as beside its own bytes: looking at it is most of what it costs.
FRAME_COST_BYTES = 2 * 1024
# A queue below this is granted to every connection, however much all others hold.
QUEUE_EXEMPT_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class RelayLimits:
    """What a peer that relays gives to those whom others cannot reach, all together."""

    registered_max: int = 64  # peers that wait for calls; each costs one idle connection
    flows_max: int = 512  # spliced pairs of connections
    flows_per_peer_max: int = 64  # of one called peer: a few for each of some twenty callers
    bytes_per_second_max: float = 1.25e6  # 10 Mbit/s, both directions counted
    bytes_per_day_max: float = 20e9  # then flows end and calls are refused until the day is over
    call_seconds_max: float = 5.0  # for the called peer to come
    flow_stall_seconds_max: float = 30.0  # a side that takes nothing for so long ends its flow
