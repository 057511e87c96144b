"""The errors a user can meet. Each says what was found and where, what would be accepted, and what to run next."""


class RefAVSError(Exception):
    """Base of every error that is the input's fault; commands print it on one line and exit with status 2."""


class ConfigError(RefAVSError):
    """A setting, grid file or command-line value that cannot be used."""


class DatasetError(RefAVSError):
    """A benchmark folder, metadata file, video, mask or sound that cannot be used."""


class StoreError(RefAVSError):
    """A feature store that is missing, damaged, half-written or made by other encoders."""


class WeightsError(RefAVSError):
    """Encoder weights that are missing or of another architecture."""


class StatisticsError(RefAVSError):
    """Statistics of a run's predictions that are missing, damaged, or of something else than is asked for."""
