"""The one exception a user is meant to read."""


class WorkbenchError(Exception):
    """Something the user can mend. The message is one plain sentence that names the file, key, image or
    annotation at fault; the command line prints it to stderr and exits with code 2."""
