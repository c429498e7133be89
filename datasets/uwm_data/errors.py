"""The one error that episode stores raise."""


class StoreError(ValueError):
    """Bad episode data, or a store that is foreign, damaged, locked or out of space; the text says what to try."""
