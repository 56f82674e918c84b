"""``python -m eql_d2 COMMAND ...``, the same as ``eql-d2 COMMAND ...``."""

from eql_d2.cli import main

if __name__ == "__main__":
    main()
