"""One trusted cluster: ranks of a launcher that train one model together."""
