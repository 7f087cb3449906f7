"""The errors a user can mend. Each message says what was seen, what was wanted and what to do."""


class GrpoError(ValueError):
    """Base of every error that the user, not the programmer, can mend."""


class ConfigError(GrpoError):
    """A configuration that cannot be used."""


class DataError(GrpoError):
    """A prompt source or demonstration file that cannot be used."""


class ModelError(GrpoError):
    """A model folder that cannot be used."""


class EngineError(GrpoError):
    """A sampling engine that does not start, has died, hangs, or draws from another policy than it should."""


class JudgeError(GrpoError):
    """A judge that refuses what it is asked, or cannot be reached."""


class ArtifactError(GrpoError):
    """A run's file that is missing, damaged or of another schema."""


class VersionError(ArtifactError):
    """A run's file that newer code wrote."""


class StorageError(GrpoError):
    """The disk is full, read-only, or not this user's, or too many files are open."""


class RunInUseError(GrpoError):
    """Another live process writes to the run."""


class GateError(GrpoError):
    """A gate of the run that waits for a decision."""


class RejectedError(GateError):
    """A gate of the run at which someone said no."""


class DivergenceError(GrpoError):
    """A loss or gradient that is not finite."""
