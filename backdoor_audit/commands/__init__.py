"""The commands of ``backdoor-audit``, one module each.

A command has its ``NAME``, its ``HELP`` in one line, ``declare``, which adds its arguments to a parser, and ``run``, which does
the work, raises `AuditError` for input that cannot be used and returns an exit code. What takes seconds to import, torch above
all, is imported in these two functions, so that ``backdoor-audit --help`` is fast.
"""
