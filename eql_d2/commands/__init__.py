"""The commands of ``eql-d2``, a module for each: from arguments to calls of the package, and what is printed.

Each has ``main(argv)``, which returns the exit status (``None`` for 0) and raises :class:`~eql_d2.errors.InputError`
for what a user can mend; :mod:`eql_d2.cli` finds it by the command's name and calls it. The files in ``tools/`` and
``demo/`` of a checkout are the same commands.
"""
