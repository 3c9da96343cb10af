"""Sub-commands of ``dynllava``: one module each.

A command module defines ``HELP`` (one line), ``configure(parser)`` and ``run(args) -> int``; its
module name with ``_`` turned into ``-`` is the command's name.  Modules import heavy packages
inside ``run`` so that ``dynllava --help`` stays fast.
"""
