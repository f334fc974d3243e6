"""One running peer: the only place where it touches network, clock, disk and threads."""
