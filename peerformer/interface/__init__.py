"""What a person meets: the commands, the console, the progress line."""
