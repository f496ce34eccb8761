"""Shows a user's values in messages.

The text is always one short line, even if a value is long or has odd characters.
"""

import re
import reprlib

# File names and class names do not need these characters. They would break the line of a message. Tabs are allowed.
CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
LONGEST_PATH = 4096  # Linux opens no longer path


class _Short(reprlib.Repr):
    """``repr`` that shortens: text to 60 characters, a list to 6 items, and nested lists to dots."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel, self.maxstring, self.maxother = 1, 60, 60

    def repr_int(self, x: int, level: int) -> str:
        """Python refuses to print whole numbers of more than 4300 digits."""
        return super().repr_int(x, level) if x.bit_length() < 1000 else f"<a whole number of {x.bit_length()} bits>"


shown = _Short().repr


def one_line(text: object, longest: int = 300) -> str:
    """Text without quotes (a file's name, the text of another error) in one line.

    Long text is shortened in its middle.
    """
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-(longest // 2) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: Exception) -> str:
    """The reason why a file cannot be read, without the file's name, because the message already names the file."""
    return one_line(" ".join(str(getattr(error, "strerror", None) or error).split()))


def path_problem(path: str) -> str | None:
    """What is wrong with a path or name in a list or a dataset's file; ``None`` if nothing is."""
    if not path.strip():
        return "is empty"
    if CONTROL.search(path):
        return "holds a control character"
    return f"is longer than {LONGEST_PATH} characters" if len(path) > LONGEST_PATH else None
