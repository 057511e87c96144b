"""The errors a user can meet. Each says what was found and where, what would be accepted, and what to run next."""


class RefAVSError(Exception):
    """Base of every error that is the input's fault; commands print it on one line and exit with status 2."""


class ConfigError(RefAVSError):
    """A setting, grid file or command-line value that cannot be used."""


class SettingError(ConfigError):
    """A setting whose value cannot be used, or several that do not agree.

    The message begins with the name of the first setting, as its dataclass knows it.

    Attributes:
        settings: their names, the one to change first.
    """

    def __init__(self, message: str, *settings: str) -> None:
        super().__init__(message, *settings)
        self.message, self.settings = message, settings

    def __str__(self) -> str:
        return self.message

    def within(self, section: str) -> "SettingError":
        """The same error about settings that are part of a larger configuration."""
        return SettingError(f"{section}.{self.message}", *(f"{section}.{name}" for name in self.settings))


class DatasetError(RefAVSError):
    """A benchmark folder, metadata file, video, mask or sound that cannot be used."""


class StoreError(RefAVSError):
    """A feature store that is missing, damaged, half-written or made by other encoders."""


class WeightsError(RefAVSError):
    """Encoder weights that are missing or of another architecture."""


class StatisticsError(RefAVSError):
    """Statistics of a run's predictions that are missing, damaged, or of something else than is asked for."""
