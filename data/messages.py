"""A user's values in messages: always one short line, even if a value is long or holds odd characters."""

import re
import reprlib

# No file name or class name needs these, and they would break the line of a message or a log. A tab is allowed.
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
    """Text without quotes (a file's name, the words of another error) in one line, shortened in its middle."""
    text = str(text)
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-(longest // 2) :]}"
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def reason(error: Exception) -> str:
    """Why a file cannot be read, without the file's name, which the message holds already."""
    return one_line(" ".join(str(getattr(error, "strerror", None) or error).split()))


def path_problem(path: str) -> str | None:
    """What is wrong with a path or name as written in a list or a dataset's file; ``None`` if it is good."""
    if not path.strip():
        return "is empty"
    if CONTROL.search(path):
        return "holds a control character"
    return f"is longer than {LONGEST_PATH} characters" if len(path) > LONGEST_PATH else None
