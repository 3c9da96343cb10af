"""Sub-commands of ``dynllava``: one module each.

A command module defines ``HELP`` and ``EXAMPLE`` (one line each), ``configure(parser)``,
``run(args) -> int``, and ``RESUMES`` where a second start goes on with what the first left; its
module name with ``_`` turned into ``-`` is the command's name.  Modules import heavy packages
inside ``run`` so that ``dynllava --help`` stays fast.
"""
