"""How far the fetching of a state is: a bar where there is a screen, else a line now and then."""

import time

from peerformer import events

BAR_CELLS = 20
LINE_SECONDS = 2.0  # between two lines without a screen


class SyncView:
    """Follows one fetch after another, by its events."""

    def __init__(self) -> None:
        self.text = ""  # of the fetch in hand; empty if there is none
        self._began = self._said_at = 0.0
        self._bytes = 0

    def on_event(self, event: events.Event) -> bool:
        """Take an event in; True if a line is due where there is no bar."""
        match event:
            case events.SyncStarted():
                self._began, self._bytes, self._said_at = time.monotonic(), 0, 0.0
                self.text = f"fetching the state of round {event.to_round}"
            case events.ChunkFetched():
                self._bytes += event.bytes
                self.text = self._progress(event)
                now = time.monotonic()
                if now - self._said_at >= LINE_SECONDS or event.done == event.chunks:
                    self._said_at = now
                    return True
            case events.SyncFinished():
                self.text = ""
        return False

    def _progress(self, event: events.ChunkFetched) -> str:
        seconds = max(time.monotonic() - self._began, 1e-3)
        filled = BAR_CELLS * event.done // event.chunks
        bar = "█" * filled + "░" * (BAR_CELLS - filled)
        rate = self._bytes / seconds
        own = event.bytes / max(event.seconds, 1e-6)
        left = (event.chunks - event.done) * event.bytes / rate
        return (
            f"round {event.round}  {bar} {100 * event.done // event.chunks:3d} %  "
            f"{event.done}/{event.chunks} chunks  {self._bytes / 1e6:.1f} MB  "
            f"{rate / 1e6:.1f} MB/s  {seconds:.0f} s, {left:.0f} s left  "
            f"(chunk {event.index} from {event.name}, {own / 1e6:.1f} MB/s)"
        )
