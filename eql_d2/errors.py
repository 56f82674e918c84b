"""The one exception for input that the user can mend."""


class InputError(ValueError):
    """A file, a config value or a data set is wrong in a way that the user can mend.

    The message is one sentence that names the file, the field and the value, and says what would be right. The tools
    print it without a stack and exit with status 2.
    """
