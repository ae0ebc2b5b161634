"""The errors that vitsplit raises on purpose.

Each message says what is wrong, where (file, class, shape) and what to do next. The command line prints the message
of a ``VitsplitError`` alone, without a traceback, and ends with exit status 2.
"""


class VitsplitError(Exception):
    """Everything that a user can put right."""


class ConfigError(VitsplitError, ValueError):
    """A setting, or a combination of settings, that cannot work."""


class DataError(VitsplitError):
    """An image, a label or a folder that cannot be used."""


class WeightsError(VitsplitError):
    """Pretrained weights that could not be had, read or recognised."""


class BundleError(VitsplitError):
    """A head bundle that is broken or does not fit what it is used with."""


class RunError(VitsplitError):
    """A run folder that is taken, cannot be resumed or cannot be written."""


class NotPicklableError(VitsplitError, TypeError):
    """A predictor that was to be sent to another process; the message says how to load it there."""


class TrainingError(VitsplitError):
    """Training that cannot go on, such as a loss that is not finite."""
