"""At which hours of the day a peer trains: `22:00-07:00`, by the local clock, over midnight too.

Only the clock on the wall counts, so on the night when summer time ends a window is an hour longer,
and nothing is ever an hour late. Outside its hours a peer votes and serves; it only does not train.
"""

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta

from peerformer.errors import ConfigError

_WINDOW = re.compile(r"(\d{1,2}):(\d{2})-(\d{1,2}):(\d{2})")


@dataclass(frozen=True, slots=True)
class Hours:
    """From one time of the day to another, which may be on the next day."""

    begin: time
    end: time

    def __str__(self) -> str:
        return f"{self.begin:%H:%M}-{self.end:%H:%M}"

    def contain(self, moment: datetime) -> bool:
        """Tell whether a local time is within these hours."""
        now = moment.time().replace(tzinfo=None)
        if self.begin < self.end:
            return self.begin <= now < self.end
        return now >= self.begin or now < self.end

    def next_change(self, moment: datetime) -> datetime:
        """Return the local time, after `moment`, at which these hours begin or end next."""
        edge = self.end if self.contain(moment) else self.begin
        change = datetime.combine(moment.date(), edge)
        here = moment.replace(tzinfo=None)
        return change if change > here else change + timedelta(days=1)


def read_hours(text: str) -> Hours:
    """Read `22:00-07:00`.

    Raises:
        ConfigError: if it is not two times of the day, or all of it or nothing.
    """
    found = _WINDOW.fullmatch(text.strip())
    numbers = [int(part) for part in found.groups()] if found else []
    if not numbers or max(numbers[::2]) > 23 or max(numbers[1::2]) > 59:
        raise ConfigError(
            f"--between {text!r:.40} is not two times of the day", hint="--between 22:00-07:00"
        )
    from_hour, from_minute, to_hour, to_minute = numbers
    hours = Hours(time(from_hour, from_minute), time(to_hour, to_minute))
    if hours.begin == hours.end:
        raise ConfigError(
            f"--between {text!r:.40} begins when it ends",
            hint="leave --between out to train at all hours",
        )
    return hours
