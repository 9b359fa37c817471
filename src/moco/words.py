"""Numbers in the sentences that people read."""


def some(count: float, what: str) -> str:
    """So many of something: "1 epoch", "1,000 images", "2.5 epochs"; `what` is the word for one."""
    number = f"{count:,}" if isinstance(count, int) else f"{count:.4g}"
    return f"{number} {what}" if count == 1 else f"{number} {what}s"


def duration(seconds: float) -> str:
    """A time in words short enough for a table."""
    long = f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
    return f"{seconds:.0f} s" if seconds < 90 else long
