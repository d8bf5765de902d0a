class KleinError(ValueError):
    """One sentence for the user: what was found, what was expected, what to load or change instead."""
