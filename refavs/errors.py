"""Errors shown to users. Each says what was found and where, what is accepted, and what to do next."""


class RefAVSError(Exception):
    """Base of all errors caused by the input; commands print it on one line and exit with status 2."""


class ConfigError(RefAVSError):
    """A setting, grid file or command-line value that cannot be used."""


class SettingError(ConfigError):
    """A setting with an unusable value, or several in conflict.

    The message starts with the name of the first setting.

    Attributes:
        settings: names of these settings; the first is the one to change.
    """

    def __init__(self, message: str, *settings: str) -> None:
        super().__init__(message, *settings)
        self.message, self.settings = message, settings

    def __str__(self) -> str:
        return self.message

    def within(self, section: str) -> "SettingError":
        """The same error with the settings' names prefixed by their section."""
        return SettingError(f"{section}.{self.message}", *(f"{section}.{name}" for name in self.settings))


class DatasetError(RefAVSError):
    """A benchmark folder, metadata file, video, mask or sound that cannot be used."""


class StoreError(RefAVSError):
    """A feature store that is missing, damaged, incomplete or made by other encoders."""


class WeightsError(RefAVSError):
    """Weights that are missing, damaged or belong to another architecture."""


class StatisticsError(RefAVSError):
    """Statistics of a run's predictions that are missing, damaged or belong to another run."""
