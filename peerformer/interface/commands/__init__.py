"""One short module per command; each is imported when its command runs, and not before."""
