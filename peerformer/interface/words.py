"""What happens to a node, in words: a line an event, for the console and for `peerformer log`."""

from peerformer import events


def words_of(event: events.Event) -> str | None:
    """Return an event in words; None for one that is no news to a person."""
    return _of_a_round(event) or _of_a_peer(event) or _of_the_state(event) or _of_the_day(event)


def _of_a_round(event: events.Event) -> str | None:
    match event:
        case events.RoundCommitted():
            return (
                f"round {event.round} decided: {event.accepted} of {event.contributions} "
                f"contributions, {event.seconds:.1f} s"
            )
        case events.ContributionRefused():
            words = f"round {event.round}: {event.name} refused: {event.reason}"
            return f"{words} ({event.evidence})" if event.evidence else words
        case events.ViewChanged():
            return (
                f"round {event.round}: no decision under {event.leader}, view {event.view} begins"
            )
        case events.ContributionsAlike():
            return f"round {event.round}: {event.name} sends what {event.other_name} sends"
        case events.PeerAudited():
            able = "could" if event.passed else "could not"
            return f"round {event.round}: {able} repeat the training of {event.name}: {event.why}"
        case events.ForkSeen():
            return "two certificates for one round: more than f lied, and this peer has stopped"
    return None


def _of_a_peer(event: events.Event) -> str | None:
    match event:
        case events.PeerEvicted():
            return f"{event.name} is evicted: {event.evidence}"
        case events.PeerQuarantined():
            return f"{event.name} is quarantined to round {event.until_round}"
        case events.PeerJoined():
            return f"{event.name} has joined as a {event.role}"
        case events.PeerLeft():
            return f"{event.name} has left"
        case events.PeerSuspended():
            return f"{event.name} is suspended: away for {event.idle_rounds} rounds"
        case events.PeerReturned():
            return f"{event.name} is back and votes again"
        case events.PeerStruck():
            return f"{event.name} gets a strike: {event.reason}"
        case events.WorkDoubted():
            return f"{event.name} does its own data no more good than other data"
        case events.PeerConnected():
            return f"{event.name} is connected"
        case events.PeerDisconnected():
            return f"{event.name} is gone"
        case events.Misbehaved():
            return f"{event.name} misbehaves: {event.reason}"
    return None


def _of_the_state(event: events.Event) -> str | None:
    match event:
        case events.SyncStarted():
            return f"behind: fetching the state of round {event.to_round}"
        case events.SyncResumed():
            return (
                f"going on with {event.done} of {event.chunks} chunks that were fetched before, "
                f"{event.bytes / 1e6:.1f} MB"
            )
        case events.SourceReplaced():
            return f"{event.name} is not asked for the state any more: {event.reason}"
        case events.HistoryGone():
            return (
                f"{event.name} keeps no rounds so old as {event.round} any more: join by an "
                "invitation instead (peerformer invite, peerformer join)"
            )
        case events.SyncFinished():
            return (
                f"state of round {event.round} is here and verified, {event.bytes / 1e6:.1f} MB in "
                f"{event.seconds:.1f} s"
            )
    return None


def _of_the_day(event: events.Event) -> str | None:
    match event:
        case events.TrainingPaused():
            until = f" until {event.until}" if event.until else "; resume goes on"
            return f"paused {event.reason}{until}: it votes and serves, and trains no more"
        case events.TrainingResumed():
            return "training goes on"
        case events.QuorumLost():
            return (
                f"only {event.connected} voters are connected and {event.quorum} are needed: "
                "waiting, nothing is decided here; what is agreed is still served"
            )
        case events.QuorumBack():
            return (
                f"{event.connected} voters are connected again after {span(event.seconds)}; "
                "going on"
            )
        case events.NetworkLost():
            return f"all {event.peers} connections are lost at once: dialling again"
        case events.NetworkBack():
            return f"connected again after {span(event.seconds)}"
        case events.AddressChanged():
            before = ", ".join(event.before) or "nowhere"
            return (
                f"this machine has moved from {before} to {', '.join(event.now)}; others are told"
            )
        case events.ClockJumped():
            way = "forward" if event.seconds > 0 else "back"
            return f"the clock was set {way} by {span(abs(event.seconds))}; no timer follows it"
        case events.Slept():
            return f"{event.cause} for {span(event.seconds)}; catching up"
        case events.DiskFull():
            return (
                f"the disk is full ({event.why}): nothing is signed until there is room in "
                f"{event.where}"
            )
        case events.Warned():
            return "\n  ".join(text for text in (event.what, event.why, event.hint) if text)
        case events.DiskHasRoom():
            return f"there is room on the disk again after {span(event.seconds)}; going on"
    return None


def span(seconds: float) -> str:
    """Return a stretch of time in the unit that a person would use."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7_200 else f"{seconds / 3_600:.1f} h"
