"""Why a contribution is left out of an update: the reasons that headers carry, and their words."""

BAD, HARMFUL, EQUIVOCATED, QUARANTINED, NO_SLOT, NORM, UNSUPPORTED, AUDIT = range(8)
REFUSAL_WORDS = (
    "its contribution does not decode",
    "most scorers saw the loss rise",
    "it committed to two contributions",
    "it is quarantined",
    "no slot was left",
    "its norm is out of bounds",
    "too few voters held it in time",
    "most auditors could not repeat its training",
)
