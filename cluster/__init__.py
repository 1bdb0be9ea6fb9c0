"""Where it runs. Knows Ray core; imports no torch."""
