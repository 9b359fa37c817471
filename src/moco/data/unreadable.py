"""The errors of images that cannot be read."""


class Unreadable(RuntimeError):
    """An image that cannot be read: which, and why."""

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)
        self.name, self.reason = name, reason

    def __str__(self) -> str:
        return f"cannot decode {self.name}: {self.reason}"


class Lost(Unreadable):
    """An image whose shard is not there: `Source.notes` tell of all of them, so none is named later on."""
