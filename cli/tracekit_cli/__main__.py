"""`python -m tracekit_cli`: the command, of the interpreter that is asked."""

from tracekit_cli.main import main

main()
