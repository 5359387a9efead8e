"""Floor 7: the command line. One file per command group; each asks the floors below and prints, none decides.

main.py      the root command: a table of names, modules loaded when named     command.py   options every command has, one session per call
output.py    table, TSV, JSON or ids, on stdout; notes and questions on stderr  text.py      how values look; nothing from task data reaches a terminal raw
problems.py  errors, exit codes                                                 shapes.py    the JSON of every thing that is shown (schema version 1)
"""
