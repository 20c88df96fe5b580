"""The errors that the command prints."""


class TemplatesError(Exception):
    """What was wrong, what was expected and what to do, in one sentence."""
