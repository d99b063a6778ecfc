"""The error of a user who gave what cannot be."""


class UsageError(ValueError):
    """The user's mistake: main prints it and exits with 2. One line per problem."""
