"""Exceptions of vitsplit.

Each message says what is wrong, where (file, class, shape) and what to do next. The command line prints the message
of a ``VitsplitError`` alone, without a traceback, and ends with exit status 2.
"""


class VitsplitError(Exception):
    """Base class of errors that the user can correct."""


class ConfigError(VitsplitError, ValueError):
    """An invalid setting or combination of settings."""


class DataError(VitsplitError):
    """An image, a label or a folder that cannot be used."""


class ImageFormatError(DataError):
    """A file that is not an image of a supported format."""


class ImageTooLargeError(DataError):
    """An image with more pixels or bytes than may be decoded."""


class WeightsError(VitsplitError):
    """Pretrained weights that are unavailable, unreadable or not recognized."""


class BundleError(VitsplitError):
    """A head bundle that is corrupt or does not match the backbone or data it is used with."""


class HubError(VitsplitError):
    """A repository of the Hugging Face hub that is missing, not accessible, too large or refuses an upload."""


class RunError(VitsplitError):
    """A run folder that is in use, cannot be resumed or cannot be written."""


class FolderInUseError(RunError):
    """A folder that another process uses."""


class NotPicklableError(VitsplitError, TypeError):
    """A predictor was pickled; the message says how to load it in another process."""


class ExportError(VitsplitError):
    """A head that cannot be exported, a graph whose outputs differ from the model's, or an invalid exported folder."""


class TrainingError(VitsplitError):
    """Training cannot continue, for example because the loss is not finite."""
