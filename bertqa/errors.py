"""The one exception for what a user can mend: a file, a flag, a value."""


class UserError(ValueError):
    """Bad input, said in one sentence: what is wrong, where it stands, and what to do.

    Raised where the fault is found; the scripts turn it into that sentence on stderr and
    exit code 2. Anything else that is raised is a defect of this program.
    """
