"""What the commands do: one verb, one file."""
