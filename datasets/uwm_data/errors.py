"""The errors that episode stores and readers of other formats raise: one class, and one below it."""


class StoreError(ValueError):
    """Bad episode data, or a store that is foreign, damaged, locked or out of space; the text says what to try."""


class FormatError(StoreError):
    """A dataset of another format that cannot be read or written: file, episode and field, what was expected, what to try."""
