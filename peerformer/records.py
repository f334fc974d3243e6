"""What every record of an event has in common: a tag, a time, and no fields that are unknown."""

import msgspec


def snake_case(class_name: str) -> str:
    """`StepDone` -> `step_done`."""
    return "".join(f"_{c.lower()}" if c.isupper() else c for c in class_name).lstrip("_")


class Record(
    msgspec.Struct,
    frozen=True,
    kw_only=True,
    tag_field="event",
    tag=snake_case,
    forbid_unknown_fields=True,
):
    """What all records have: the time of writing, UTC ISO-8601, empty until then."""

    time: str = ""
